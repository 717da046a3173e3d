#include "linear.h"

#include "../cpu/linear.h"

namespace fastgan::bindings {

namespace {

cpu::ActivationArguments arguments_of(LayerActivation a) { return {a.activation, a.negative_slope}; }

// A matrix to be read beside g: contiguous, whatever a saved-tensor hook made of it, and of its dtype and shape.
Tensor ready(const Tensor& matrix, const Tensor& g) {
  TORCH_CHECK(matrix.scalar_type() == g.scalar_type() && matrix.sizes() == g.sizes() && matrix.device() == g.device(),
              "mlp: a saved tensor of shape ", matrix.sizes(), ", ", matrix.scalar_type(), " on ", matrix.device(),
              " must be like its gradient: shape ", g.sizes(), ", ", g.scalar_type(), " on ", g.device());
  return matrix.contiguous();
}

}  // namespace

LayerOutput linear_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, LayerActivation activation,
                           bool keep_z) {
  LayerOutput out;
  // The library adds a 16-bit bias before it rounds the product; a pass of our own would round twice.
  const bool narrow = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  const Tensor b = bias.defined() && !narrow ? bias.contiguous() : Tensor();
  Tensor z = bias.defined() && narrow ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
  const int64_t rows = z.size(0), cols = z.size(1);
  out.y = keep_z ? at::empty_like(z) : z;
  with_dtype(z.scalar_type(), "mlp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cpu::bias_act<T>(arguments_of(activation), rows, cols, mutable_data<T>(z), b.defined() ? data<T>(b) : nullptr,
                     mutable_data<T>(out.y));
  });
  if (keep_z) out.z = z;
  return out;
}

LayerGradient activation_backward(const Tensor& grad_y, const Tensor& saved, LayerActivation activation, bool need_bias,
                                  bool reuse) {
  const Tensor g = grad_y.contiguous(), s = ready(saved, g);
  const bool identity = activation.activation == Activation::identity;
  LayerGradient out;
  out.grad_z = identity || (reuse && g.is_same(grad_y)) ? g : at::empty_like(g);
  if (need_bias) out.grad_bias = at::empty({g.size(1)}, g.options());
  if (identity && !need_bias) return out;
  with_dtype(g.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const T* saved_data = identity ? data<T>(g) : data<T>(s);
    cpu::act_backward<T>(arguments_of(activation), g.size(0), g.size(1), data<T>(g), saved_data,
                         identity ? nullptr : mutable_data<T>(out.grad_z),
                         need_bias ? mutable_data<T>(out.grad_bias) : nullptr);
  });
  return out;
}

LayerSecondGradient activation_double_backward(const Tensor& given_u, const Tensor& given_grad_y,
                                               const Tensor& given_saved, LayerActivation activation) {
  const Tensor u = given_u.contiguous(), saved = ready(given_saved, u);
  const Tensor grad_y = activation.is_curved() ? ready(given_grad_y, u) : u;  // else it is not read
  if (activation.activation == Activation::identity) return {u, Tensor()};
  LayerSecondGradient out{at::empty_like(u), activation.is_curved() ? at::empty_like(u) : Tensor()};
  with_dtype(u.scalar_type(), "mlp_double_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cpu::act_double_backward<T>(arguments_of(activation), u.numel(), data<T>(u), data<T>(grad_y), data<T>(saved),
                                mutable_data<T>(out.grad_grad_y),
                                out.grad_z.defined() ? mutable_data<T>(out.grad_z) : nullptr);
  });
  return out;
}

}  // namespace fastgan::bindings
