// CPU kernels of the binary cross-entropy. Pointers are to contiguous memory; T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/bce.h"
#include "context.h"

namespace fastgan::cpu {

// The n losses.
template <class T>
void bce_elementwise(const Context&, const BceArguments<T>& arguments, T* losses);

// loss = scale times the sum of the n losses.
template <class T>
void bce_sum(const Context&, const BceArguments<T>& arguments, double scale, T* loss);

// grad_input and grad_target (either may be null): scale * grad_output * derivative. grad_output has one element
// (grad_output_stride 0) or n (stride 1).
template <class T>
void bce_backward(const Context&, const BceArguments<T>& arguments, const T* grad_output, int64_t grad_output_stride,
                  double scale, T* grad_input, T* grad_target);

}  // namespace fastgan::cpu
