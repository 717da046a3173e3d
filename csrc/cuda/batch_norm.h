// CUDA kernels of batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1) for the whole step: one
// launch each way, the update of weight and bias included. Matrices are contiguous, rows x cols; a batch may have two
// halves, each with its own statistics. T is float or double.
#pragma once

#include "../core/step.h"
#include "platform.h"

namespace fastgan::cuda {

template <class T>
struct BatchNormForward {
  StepLayer<T> layer;
  int64_t batch;  // rows of a half
  int halves;
  const T* x;  // (halves * batch, width)
  T* moments;  // mean and 1 / standard deviation of each half: [half][2][width]
  T* z;        // what the activation is of, or null
  T* y;        // both as x
};
template <class T>
void batch_norm_forward(const Context& context, const BatchNormForward<T>& arguments);

// The gradient by the layer's input and on through the activation before it; then the update of weight and bias.
template <class T>
struct BatchNormBackward {
  StepLayer<T> layer;
  int64_t batch;
  int halves;
  const T *x, *grad_z, *moments;
  // The gradient goes to the first `target_width` features; null where it is not wanted.
  int64_t target_width;
  const T* saved;  // (halves * batch, target_width), or null without an activation
  ActivationArguments activation;
  T* grad;
  bool updates;
  T average_rate;
};
template <class T>
void batch_norm_backward(const Context& context, const BatchNormBackward<T>& arguments);

}  // namespace fastgan::cuda
