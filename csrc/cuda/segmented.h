// CUDA kernels of the segmented activation, one launch each way: csrc/cpu/segmented.h on the device.
#pragma once

#include "../core/segmented.h"
#include "platform.h"

namespace fastgan::cuda {

template <class T>
void segmented(const Context& context, const Segments& segments, const SegmentedPass<T>& pass);

}  // namespace fastgan::cuda
