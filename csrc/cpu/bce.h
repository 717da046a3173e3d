// CPU kernels of the binary cross-entropy. Pointers are to contiguous memory; T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/bce.h"

namespace fastgan::cpu {

// A tensor broadcast over the input: element i of the input meets data[i % period]. Null data is all ones.
template <class T>
struct Operand {
  const T* data;
  int64_t period;
};

template <class T>
struct BceArguments {
  int64_t n;
  const T* input;
  const T* target;
  Operand<T> weight;
  Operand<T> pos_weight;
};

// The n losses.
template <class T>
void bce_elementwise(const BceArguments<T>& arguments, T* losses);

// The sum of the n losses.
template <class T>
double bce_sum(const BceArguments<T>& arguments);

// grad_input and grad_target (either may be null): scale * grad_output * derivative. grad_output has one element
// (grad_output_stride 0) or n (stride 1).
template <class T>
void bce_backward(const BceArguments<T>& arguments, const T* grad_output, int64_t grad_output_stride, double scale,
                  T* grad_input, T* grad_target);

}  // namespace fastgan::cpu
