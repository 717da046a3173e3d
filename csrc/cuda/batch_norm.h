// CUDA kernels of batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1) for the whole step: one
// launch each way, the update of weight and bias included. Matrices are contiguous, rows x cols; each part of a batch
// has its own statistics. T is float or double.
#pragma once

#include "parts.h"

namespace fastgan::cuda {

template <class T>
struct BatchNormForward {
  StepLayer<T> layer;
  Parts parts;
  const T* x;  // (rows, width)
  T* moments;  // mean and 1 / standard deviation of each part: [part][2][width]
  T* z;        // what the activation is of, or null
  T* y;        // both as x
};
template <class T>
void batch_norm_forward(const Context& context, const BatchNormForward<T>& arguments);

// The gradient by the layer's input and on through the activation before it; then the update of weight and bias.
template <class T>
struct BatchNormBackward {
  StepLayer<T> layer;
  Parts parts;
  const T *x, *grad_z, *moments;
  // The gradient goes to the first `target_width` features; null where it is not wanted.
  int64_t target_width;
  const T* saved;  // (rows, target_width), or null without an activation
  ActivationArguments activation;
  T* grad;
  bool updates;
  T average_rate;
  T *grad_weight = nullptr, *grad_bias = nullptr;  // (width) each: where the gradients go instead of into the update
};
template <class T>
void batch_norm_backward(const Context& context, const BatchNormBackward<T>& arguments);

}  // namespace fastgan::cuda
