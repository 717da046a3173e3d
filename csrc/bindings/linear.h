// One layer, y = activation(x W^T + b), on matrices, each function for every scope that the build has.
// x is (batch, in), W (out, in), b (out), y and z (batch, out). The mlp op strings these together.
//
// On the CPU a library does the products, and this project's kernels what is around them. On CUDA either that or a
// kernel of this project's own, with all of it in one launch: see layer_path.h.
#pragma once

#include "../core/activation.h"
#include "scopes.h"

namespace fastgan::bindings {

struct LayerActivation : ActivationArguments {
  bool saves_output() const { return fastgan::saves_output(*this); }
  bool is_curved() const { return !is_piecewise_linear(activation); }
};

struct LayerOutput {
  Tensor y;
  Tensor z;  // the pre-activation, defined where it was asked for
};

// bias may be undefined.
template <class Scope>
LayerOutput linear_forward(const Scope& here, const Tensor& x, const Tensor& weight, const Tensor& bias,
                           LayerActivation activation, bool keep_z);

// grad_z from grad_y, and the bias gradient where it is asked for. Where reuse is set, grad_y's memory may become
// grad_z's. `saved` is y or z, whichever the activation saves.
struct LayerGradient {
  Tensor grad_z;
  Tensor grad_bias;
};
template <class Scope>
LayerGradient activation_backward(const Scope& here, const Tensor& grad_y, const Tensor& saved,
                                  LayerActivation activation, bool need_bias, bool reuse);

// grad_weight = grad_z^T x and grad_bias, the column sums of grad_z, each where it is asked for.
struct ParameterGradients {
  Tensor grad_weight;
  Tensor grad_bias;
};
template <class Scope>
ParameterGradients parameter_gradients(const Scope& here, const Tensor& grad_z, const Tensor& x, bool need_weight,
                                       bool need_bias);

// The gradient by the layer's input; and, where a kernel does it in the same launch, on through the activation of the
// layer before (`saved` and `activation` are its).
struct InputGradient {
  Tensor grad_x;         // undefined where grad_z_before is defined and keep_grad_x was not set
  Tensor grad_z_before;  // undefined where activation_backward is still to be done
};
template <class Scope>
InputGradient input_gradient(const Scope& here, const Tensor& grad_z, const Tensor& weight, const Tensor& saved,
                             LayerActivation activation, bool keep_grad_x);

// u is the cotangent of grad_z; returns the cotangents of grad_y and of z (undefined where that is zero).
struct LayerSecondGradient {
  Tensor grad_grad_y;
  Tensor grad_z;
};
template <class Scope>
LayerSecondGradient activation_double_backward(const Scope& here, const Tensor& u, const Tensor& grad_y,
                                               const Tensor& saved, LayerActivation activation);

}  // namespace fastgan::bindings
