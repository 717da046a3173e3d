// CUDA kernels of the binary cross-entropy, one launch each: csrc/cpu/bce.h on the device.
#pragma once

#include "../core/bce.h"
#include "platform.h"

namespace fastgan::cuda {

template <class T>
void bce_elementwise(const Context& context, const BceArguments<T>& arguments, T* losses);

template <class T>
void bce_sum(const Context& context, const BceArguments<T>& arguments, double scale, T* loss);

template <class T>
void bce_backward(const Context& context, const BceArguments<T>& arguments, const T* grad_output,
                  int64_t grad_output_stride, double scale, T* grad_input, T* grad_target);

}  // namespace fastgan::cuda
