// Of float and double; mlp_half.cu has the types of 16 bits, which compile beside these.
#include "mlp_kernels.h"

namespace fastgan::cuda {

FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)

}  // namespace fastgan::cuda
