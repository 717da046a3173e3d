// CUDA kernels of the segmented activation, one launch each way: csrc/cpu/segmented.h on the device.
#pragma once

#include "../core/segmented.h"
#include "platform.h"

namespace fastgan::cuda {

template <class T>
void segmented(const Context& context, const Segments& segments, const SegmentedPass<T>& pass);

// What each row is asked for: a level of one gumbel_softmax run, counted from the draws' column `from` on. The
// cross-entropy of that run against it, times `scale`, adds to the gradient by the input. A row whose level is none
// adds nothing.
template <class T>
struct AskedLevels {
  const int64_t* level;  // (rows)
  int64_t from;
  T scale;
  const T* input;  // of the forward pass
};

// The backward pass with the derivative of the cross-entropy. T is float or double.
template <class T>
void segmented_backward(const Context& context, const Segments& segments, const SegmentedPass<T>& pass,
                        const AskedLevels<T>& asked);

}  // namespace fastgan::cuda
