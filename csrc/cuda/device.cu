#include <cuda_runtime.h>

#include "device.h"

#define FASTGAN_TEXT(...) #__VA_ARGS__
#define FASTGAN_EXPANDED_TEXT(...) FASTGAN_TEXT(__VA_ARGS__)

namespace fastgan::cuda {

int toolkit_version() { return CUDART_VERSION; }

const char* architectures() { return FASTGAN_EXPANDED_TEXT(__CUDA_ARCH_LIST__); }

}  // namespace fastgan::cuda
