// CUDA kernels of a whole narrow network, forward and backward in one launch each: see core/mlp.h. T is float, double,
// bfloat16 or float16; tf32 as in linear.h.
#pragma once

#include "../core/adam.h"
#include "../core/mlp.h"
#include "platform.h"

namespace fastgan::cuda {

constexpr int max_narrow_layers = 8;
constexpr int max_narrow_width = 256;  // of what stays on chip between two layers

template <class T>
struct NarrowLayer : MlpLayer<T, int> {
  AdamParameter<T> adam_weight, adam_bias;  // of mlp_update, instead of grad_weight and grad_bias
};

// As a kernel takes it: by value, its layers with it. Every layer's grad_z has a place, and no grad_y is kept; the last
// grad_z is there already where grad_output is null.
template <class T>
struct NarrowNetwork : MlpPass<T> {
  NarrowLayer<T> layers[max_narrow_layers];
  int input_width = 0;  // backward: of the input's features, those whose gradient is wanted: the first of them
  // The gradient by the input goes on through this activation, of which input_saved is what its derivative is a
  // function of, (batch, input_width); null: it goes out as it is.
  const T* input_saved = nullptr;
  ActivationArguments input_activation{Activation::identity, 0};
  T average_rate = T();  // mlp_update: 1 - decay of the moving averages
};

// Whether the kernels below take this network: all but its first input and last output are at most max_narrow_width
// wide, it has at most max_narrow_layers layers, and the device has the shared memory.
template <class T>
bool is_narrow(const Context& context, const NarrowNetwork<T>& network);

template <class T>
void mlp_forward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

template <class T>
void mlp_backward(const Context& context, const NarrowNetwork<T>& network, bool tf32);

// As mlp_backward, with the update of the parameters as the weight gradients' epilogue; T is float or double.
template <class T>
void mlp_update(const Context& context, const NarrowNetwork<T>& network, bool tf32);

// What a penalty of a network's derivatives asks for, where its activations have no second ones (linear.h): steps of
// the inputs go up through the layers, each layer's y becomes row_weight y + the step of y in those rows, and the
// update is by grad_z, which is there, and these. T is float or double.
template <class T>
struct NarrowTangent {
  int64_t first, rows;  // of the batch
  const T* steps;       // (rows, in)
  const T* row_weight;  // (batch)
};
template <class T>
void mlp_tangent_update(const Context& context, const NarrowNetwork<T>& network, const NarrowTangent<T>& tangent,
                        bool tf32);

}  // namespace fastgan::cuda
