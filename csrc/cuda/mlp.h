// CUDA kernels of a whole narrow network, forward and backward in one launch each. Matrices are contiguous; T is float,
// double, bfloat16 or float16; tf32 as in linear.h.
#pragma once

#include "../core/activation.h"
#include "platform.h"

namespace fastgan::cuda {

constexpr int max_narrow_layers = 8;
constexpr int max_narrow_width = 256;  // of what stays on chip between two layers

template <class T>
struct NarrowLayer {
  int in, out;
  ActivationArguments activation;
  const T* weight;  // (out, in)
  const T* bias;    // (out) or null
  const T* x;       // (batch, in): the input, or y of the layer before; backward reads it for the weight gradient
  // forward writes these
  T* z;  // (batch, out) or null
  T* y;  // (batch, out); null where nobody but the next layer reads it
  // backward reads `saved` and writes the rest
  const T* saved;  // (batch, out): y or z, whichever the activation saves
  T* grad_z;       // (batch, out)
  T* grad_weight;  // (out, in) or null
  T* grad_bias;    // (out) or null
};

template <class T>
struct NarrowNetwork {
  int64_t batch;
  int count;   // of layers, at most max_narrow_layers
  int lowest;  // backward: the lowest layer whose grad_z is wanted
  NarrowLayer<T> layers[max_narrow_layers];
  const T* grad_output;  // backward: (batch, out of the last layer)
  T* grad_input;         // backward: (batch, in), or null; then lowest is 0
};

// Whether the kernels below take this network: all but its first input and last output are at most max_narrow_width
// wide, it has at most max_narrow_layers layers, and the device has the shared memory.
template <class T>
bool is_narrow(const Context& context, const NarrowNetwork<T>& network);

template <class T>
void mlp_forward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

template <class T>
void mlp_backward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

}  // namespace fastgan::cuda
