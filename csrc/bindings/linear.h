// One layer, y = activation(x W^T + b), on matrices: the library's products with this project's epilogues.
// x is (batch, in), W (out, in), b (out), y and z (batch, out). The mlp op strings these together.
#pragma once

#include "../core/activation.h"
#include "common.h"

namespace fastgan::bindings {

struct LayerActivation {
  Activation activation;
  double negative_slope;

  bool saves_output() const { return fastgan::saves_output(activation, negative_slope); }
  bool is_curved() const { return !is_piecewise_linear(activation); }
};

struct LayerOutput {
  Tensor y;
  Tensor z;  // the pre-activation, defined where it was asked for
};

// bias may be undefined.
LayerOutput linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, LayerActivation activation,
                           bool keep_z);

// grad_z from grad_y, and the bias gradient where it is asked for. Where reuse is set, grad_y's memory may become
// grad_z's. `saved` is y or z, whichever the activation saves.
struct LayerGradient {
  Tensor grad_z;
  Tensor grad_bias;
};
LayerGradient activation_backward(const Tensor& grad_y, const Tensor& saved, LayerActivation activation, bool need_bias,
                                  bool reuse);

// u is the cotangent of grad_z; returns the cotangents of grad_y and of z (undefined where that is zero).
struct LayerSecondGradient {
  Tensor grad_grad_y;
  Tensor grad_z;
};
LayerSecondGradient activation_double_backward(const Tensor& u, const Tensor& grad_y, const Tensor& saved,
                                               LayerActivation activation);

}  // namespace fastgan::bindings
