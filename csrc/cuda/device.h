// Facts of the CUDA build, for fastgan.info(). No torch header here or in any .cu file: so each compiles in seconds.
#pragma once

namespace fastgan::cuda {

// The toolkit compiled with, e.g. 13000 for CUDA 13.0.
int toolkit_version();

// The architectures compiled for, e.g. "800,900".
const char* architectures();

}  // namespace fastgan::cuda
