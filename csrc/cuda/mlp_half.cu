#include "mlp_kernels.h"

namespace fastgan::cuda {

FASTGAN_INSTANTIATE(bfloat16)
FASTGAN_INSTANTIATE(float16)

}  // namespace fastgan::cuda
