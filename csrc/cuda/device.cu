#include <stdexcept>
#include <string>

#include "device.h"
#include "platform.h"

#define FASTGAN_TEXT(...) #__VA_ARGS__
#define FASTGAN_EXPANDED_TEXT(...) FASTGAN_TEXT(__VA_ARGS__)

namespace fastgan::cuda {

int toolkit_version() { return CUDART_VERSION; }

const char* architectures() { return FASTGAN_EXPANDED_TEXT(__CUDA_ARCH_LIST__); }

void check(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // else the next call would report it again
  std::string sentence = std::string("fastgan: the CUDA kernel ") + name +
                         " could not be launched: " + cudaGetErrorString(error) +
                         " (work launched before it may be the cause).";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    sentence +=
        " This fastgan has no code for this GPU's architecture; rebuild it with TORCH_CUDA_ARCH_LIST unset, or "
        "set to include it (fastgan doctor shows what it was built for).";
  throw std::runtime_error(sentence);
}

}  // namespace fastgan::cuda
