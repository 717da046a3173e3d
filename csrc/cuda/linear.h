// CUDA kernels of the layers. Matrices are contiguous, rows x cols; T is float, double, bfloat16 or float16.
//
// The products come with their epilogues, one launch each. Rounding lets float products run on tensor cores; it means
// nothing for the other types: 16-bit products always run on tensor cores, double ones never.
#pragma once

#include "../core/activation.h"
#include "../core/adam.h"
#include "platform.h"

namespace fastgan::cuda {

// What the operands of a float product are rounded to; sums are float always.
enum class Rounding { none, tf32, bf16 };

// y = activation(x W^T + b), and z, what the activation is of.
template <class T>
struct LinearForward {
  int64_t batch, in, out;
  const T* x;       // (batch, in)
  const T* weight;  // (out, in)
  const T* bias;    // (out) or null
  ActivationArguments activation;
  T* z;  // (batch, out) or null
  T* y;  // (batch, out)
};
template <class T>
void linear_forward(const Context& context, const LinearForward<T>& arguments, Rounding rounding);

// The gradient by the layer's input, grad_x = grad_z W, and on through the activation of the layer before:
// grad_z_before = grad_x d(saved).
template <class T>
struct LinearInputGradient {
  int64_t batch, in, out;
  const T* grad_z;                 // (batch, out)
  const T* weight;                 // (out, in)
  const T* saved;                  // (batch, in), or null where there is no layer before
  ActivationArguments activation;  // of the layer before
  T* grad_x;                       // (batch, in), or null
  T* grad_z_before;                // (batch, in), or null
  int64_t weight_stride = 0;       // from row to row, where only the first `in` columns are wanted; else 0
};
template <class T>
void linear_input_gradient(const Context& context, const LinearInputGradient<T>& arguments, Rounding rounding);

// The same, with more added to grad_z_before in the rows from added_begin on; T is float or double, and grad_x is null.
template <class T>
struct LinearAddedGradient : LinearInputGradient<T> {
  const T* added;  // (added_rows, in)
  int64_t added_begin, added_rows;
};
template <class T>
void linear_added_gradient(const Context& context, const LinearAddedGradient<T>& arguments, Rounding rounding);

// grad_weight = grad_z^T x and grad_bias = the column sums of grad_z.
template <class T>
struct LinearWeightGradient {
  int64_t batch, in, out;
  const T* grad_z;  // (batch, out)
  const T* x;       // (batch, in)
  T* grad_weight;   // (out, in)
  T* grad_bias;     // (out) or null
};
template <class T>
void linear_weight_gradient(const Context& context, const LinearWeightGradient<T>& arguments, Rounding rounding);

// A layer's derivative along one direction a sample, `steps` of its input: with u = steps W^T that of its output is t =
// d(saved) u. And what a penalty of D's derivatives makes of it, which is one of `mixed`, `curved` and `added`, or
// nothing where all are null. T is float or double.
template <class T>
struct Tangent {
  int64_t batch, out;
  ActivationArguments activation;
  const T* saved;       // (batch, out): what the activation's derivatives are functions of
  T* t;                 // (batch, out)
  const T* row_weight;  // (batch), beside `mixed`
  T* mixed;             // (batch, out): y, which becomes row_weight y + t
  T* curved;            // (batch, out): the gradient by y, which becomes that times the second derivative times u
  T* added;             // (batch, out): the second derivative times u is added
};
template <class T>
struct LinearTangent {
  int64_t in;
  const T* steps;   // (batch, in)
  const T* weight;  // (out, in)
  Tangent<T> to;
};
template <class T>
void linear_tangent(const Context& context, const LinearTangent<T>& arguments, Rounding rounding);
// The rest of it where u is there already, in a place of its own or in t.
template <class T>
void act_tangent(const Context& context, const Tangent<T>& arguments, const T* u);

// As linear_weight_gradient, but the gradients go into the update of weight and bias instead of memory; T is float or
// double. A parameter that is not updated is left as it is.
template <class T>
struct LinearUpdate {
  int64_t batch, in, out;
  const T* grad_z;                // (batch, out)
  const T* x;                     // (batch, in)
  AdamParameter<T> weight, bias;  // (out, in) and (out)
  T average_rate;                 // 1 - decay of their moving averages
  bool bias_cancels = false;      // its gradient is zero, whatever rounding leaves of it
  const T* row_weight = nullptr;  // (batch): how often each row counts in the bias's gradient; null: once
  T *grad_weight = nullptr, *grad_bias = nullptr;  // where the gradients go instead of into the update
};
template <class T>
void linear_update(const Context& context, const LinearUpdate<T>& arguments, Rounding rounding);

// What is left where a library does the product: csrc/cpu/linear.h on the device.
template <class T>
void bias_act(const Context& context, ActivationArguments arguments, int64_t rows, int64_t cols, T* z, const T* bias,
              T* y);
template <class T>
void act_backward(const Context& context, ActivationArguments arguments, int64_t rows, int64_t cols, const T* grad_y,
                  const T* saved, T* grad_z, T* grad_bias);
template <class T>
void act_double_backward(const Context& context, ActivationArguments arguments, int64_t n, const T* u, const T* grad_y,
                         const T* saved, T* grad_grad_y, T* grad_z2);

}  // namespace fastgan::cuda
