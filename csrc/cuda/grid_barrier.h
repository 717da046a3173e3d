// A barrier of all blocks: in a header of its own, since that of cooperative groups takes 2 seconds to compile.
#pragma once

#include "ptx.h"

#ifndef FASTGAN_SIMT
#include <cooperative_groups.h>

namespace fastgan::cuda {

// Waits for all threads of a cooperative launch.
__device__ __forceinline__ void grid_barrier() { cooperative_groups::this_grid().sync(); }

}  // namespace fastgan::cuda
#endif
