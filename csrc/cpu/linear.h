// CPU kernels of the layers: everything around the matrix products, which are the bindings' (a library does them).
// Matrices are contiguous, rows x cols; T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/activation.h"
#include "context.h"

namespace fastgan::cpu {

// z += bias (may be null); y = activation(z). y may be z itself, where z is not needed afterwards.
template <class T>
void bias_act(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, T* z, const T* bias, T* y);

// grad_z = grad_y * d(saved), and, unless it is null, grad_bias = the column sums of grad_z, in one pass. grad_z may be
// grad_y itself; it may be null for the identity, where only grad_bias is wanted.
template <class T>
void act_backward(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, const T* grad_y,
                  const T* saved, T* grad_z, T* grad_bias);

// The double backward of grad_z = grad_y * d(saved), given u, the cotangent of grad_z:
//   grad_grad_y = u d(saved)      the cotangent of grad_y; may be u itself
//   grad_z2 = u grad_y dd(saved)  the cotangent of z; null for piecewise linear activations, where it is zero
template <class T>
void act_double_backward(const Context&, ActivationArguments arguments, int64_t n, const T* u, const T* grad_y,
                         const T* saved, T* grad_grad_y, T* grad_z2);

}  // namespace fastgan::cpu
