#include "linear.h"

#include "../cpu/linear.h"
#include "layer_path.h"
#ifndef FASTGAN_SIMT
#include "../cpu/thin_linear.h"
#endif

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/linear.h"
#endif

namespace fastgan::bindings {

namespace {

// A matrix to be read beside g: contiguous, whatever a saved-tensor hook made of it, and of its dtype and shape.
Tensor ready(const Tensor& matrix, const Tensor& g) {
  TORCH_CHECK(matrix.scalar_type() == g.scalar_type() && matrix.sizes() == g.sizes() && matrix.device() == g.device(),
              "mlp: a saved tensor of shape ", matrix.sizes(), ", ", matrix.scalar_type(), " on ", matrix.device(),
              " must be like its gradient: shape ", g.sizes(), ", ", g.scalar_type(), " on ", g.device());
  return matrix.contiguous();
}

template <class T>
const T* optional_data(const Tensor& tensor) {
  return tensor.defined() ? data<T>(tensor) : nullptr;
}
template <class T>
T* optional_mutable_data(const Tensor& tensor) {
  return tensor.defined() ? mutable_data<T>(tensor) : nullptr;
}

LayerOutput empty_output(const Tensor& x, const Tensor& weight, bool keep_z) {
  const auto empty = [&] { return at::empty({x.size(0), weight.size(0)}, x.options()); };
  return {empty(), keep_z ? empty() : Tensor()};
}

// A scope's own products, which take the layer on in the same launch: none on the CPU.
template <class Scope>
constexpr bool has_tiles = false;

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)

template <>
constexpr bool has_tiles<CudaScope> = true;

cuda::Rounding rounding() { return allow_tf32() ? cuda::Rounding::tf32 : cuda::Rounding::none; }

LayerOutput tiled_forward(const CudaScope& here, const Tensor& given_x, const Tensor& given_weight,
                          const Tensor& given_bias, LayerActivation activation, bool keep_z) {
  const Tensor x = given_x.contiguous(), weight = given_weight.contiguous();
  const Tensor bias = given_bias.defined() ? given_bias.contiguous() : Tensor();
  const LayerOutput out = empty_output(x, weight, keep_z);
  with_dtype(x.scalar_type(), "mlp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cuda::linear_forward(here,
                         cuda::LinearForward<T>{.batch = x.size(0),
                                                .in = x.size(1),
                                                .out = weight.size(0),
                                                .x = data<T>(x),
                                                .weight = data<T>(weight),
                                                .bias = optional_data<T>(bias),
                                                .activation = activation,
                                                .z = optional_mutable_data<T>(out.z),
                                                .y = mutable_data<T>(out.y)},
                         rounding());
  });
  return out;
}

InputGradient tiled_input_gradient(const CudaScope& here, const Tensor& given_grad_z, const Tensor& given_weight,
                                   const Tensor& given_saved, LayerActivation activation, bool keep_grad_x) {
  const Tensor grad_z = given_grad_z.contiguous(), weight = given_weight.contiguous();
  const auto empty = [&] { return at::empty({grad_z.size(0), weight.size(1)}, grad_z.options()); };
  InputGradient out;
  if (!given_saved.defined() || keep_grad_x) out.grad_x = empty();
  if (given_saved.defined()) out.grad_z_before = empty();
  const Tensor saved = given_saved.defined() ? ready(given_saved, out.grad_z_before) : Tensor();
  with_dtype(grad_z.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cuda::linear_input_gradient(
        here,
        cuda::LinearInputGradient<T>{.batch = grad_z.size(0),
                                     .in = weight.size(1),
                                     .out = weight.size(0),
                                     .grad_z = data<T>(grad_z),
                                     .weight = data<T>(weight),
                                     .saved = optional_data<T>(saved),
                                     .activation = activation,
                                     .grad_x = optional_mutable_data<T>(out.grad_x),
                                     .grad_z_before = optional_mutable_data<T>(out.grad_z_before)},
        rounding());
  });
  return out;
}

ParameterGradients tiled_parameter_gradients(const CudaScope& here, const Tensor& given_grad_z, const Tensor& given_x,
                                             bool need_bias) {
  const Tensor grad_z = given_grad_z.contiguous(), x = given_x.contiguous();
  const int64_t in = x.size(1), out = grad_z.size(1);
  ParameterGradients gradients{at::empty({out, in}, x.options()), need_bias ? at::empty({out}, x.options()) : Tensor()};
  with_dtype(grad_z.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cuda::linear_weight_gradient(
        here,
        cuda::LinearWeightGradient<T>{.batch = x.size(0),
                                      .in = in,
                                      .out = out,
                                      .grad_z = data<T>(grad_z),
                                      .x = data<T>(x),
                                      .grad_weight = mutable_data<T>(gradients.grad_weight),
                                      .grad_bias = optional_mutable_data<T>(gradients.grad_bias)},
        rounding());
  });
  return gradients;
}

#endif

#ifndef FASTGAN_SIMT

// A matrix whose rows thin kernels can read: contiguous, but for the distance between them. Empty where it is not one.
template <class T>
struct WideRows {
  explicit WideRows(const Tensor& matrix) : data(bindings::data<T>(matrix)), stride(matrix.stride(0)) {}
  const T* data;
  int64_t stride;

  static bool fits(const Tensor& matrix) { return matrix.size(1) == 1 || matrix.stride(1) == 1; }
};

// The weight, (out, in), with its few outputs, or its few inputs, first.
template <class T>
cpu::ThinMatrix<T> thin_weight(const Tensor& weight, bool few_outputs) {
  const int64_t by_output = weight.stride(0), by_input = weight.stride(1);
  return {data<T>(weight), few_outputs ? by_output : by_input, few_outputs ? by_input : by_output};
}

LayerOutput thin_forward(const CpuScope& here, const Tensor& x, const Tensor& weight, const Tensor& given_bias,
                         LayerActivation activation, bool keep_z) {
  const LayerOutput out = empty_output(x, weight, keep_z);
  const Tensor bias = given_bias.defined() ? given_bias.contiguous() : Tensor();
  const int64_t rows = x.size(0), in = x.size(1), width = weight.size(0);
  with_dtype(x.scalar_type(), "mlp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WideRows<T> wide(x);
    const T* const b = optional_data<T>(bias);
    T *const z = optional_mutable_data<T>(out.z), *const y = mutable_data<T>(out.y);
    if (width <= cpu::most_few)
      cpu::thin_dots<T>(here, activation, rows, in, static_cast<int>(width), wide.data, wide.stride,
                        thin_weight<T>(weight, true), b, z, y);
    else
      cpu::thin_outer<T>(here, activation, rows, width, static_cast<int>(in), wide.data, wide.stride,
                         thin_weight<T>(weight, false), b, z, y);
  });
  return out;
}

Tensor thin_input_gradient(const CpuScope& here, const Tensor& grad_z, const Tensor& weight) {
  const int64_t rows = grad_z.size(0), out = weight.size(0), in = weight.size(1);
  const Tensor grad_x = at::empty({rows, in}, grad_z.options());
  with_dtype(grad_z.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WideRows<T> wide(grad_z);
    T *const none = nullptr, *const to = mutable_data<T>(grad_x);
    const T* const no_bias = nullptr;
    constexpr LayerActivation identity{{Activation::identity, 0.0}};
    if (out <= cpu::most_few)
      cpu::thin_outer<T>(here, identity, rows, in, static_cast<int>(out), wide.data, wide.stride,
                         thin_weight<T>(weight, true), no_bias, none, to);
    else
      cpu::thin_dots<T>(here, identity, rows, out, static_cast<int>(in), wide.data, wide.stride,
                        thin_weight<T>(weight, false), no_bias, none, to);
  });
  return grad_x;
}

Tensor thin_weight_gradient(const CpuScope& here, const Tensor& grad_z, const Tensor& x) {
  const int64_t rows = x.size(0), out = grad_z.size(1), in = x.size(1);
  const Tensor grad_weight = at::empty({out, in}, x.options());
  with_dtype(x.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const WideRows<T> by_outputs(grad_z), by_inputs(x);
    T* const to = mutable_data<T>(grad_weight);
    if (out <= cpu::most_few)
      cpu::thin_sums<T>(here, rows, in, static_cast<int>(out), by_outputs.data, by_outputs.stride, by_inputs.data,
                        by_inputs.stride, false, to);
    else
      cpu::thin_sums<T>(here, rows, out, static_cast<int>(in), by_inputs.data, by_inputs.stride, by_outputs.data,
                        by_outputs.stride, true, to);
  });
  return grad_weight;
}

// Whether they take the products of a layer whose rows, of x or of grad_z, are these.
bool is_thin(const Tensor& rows, const Tensor& weight) {
  return prefers_thin(weight.size(0), weight.size(1)) && WideRows<char>::fits(rows);
}

#endif

}  // namespace

template <class Scope>
LayerOutput linear_forward(const Scope& here, const Tensor& x, const Tensor& weight, const Tensor& bias,
                           LayerActivation activation, bool keep_z) {
  if constexpr (has_tiles<Scope>) {
    if (is_tiled(x.size(0), weight.size(0), x.size(1), x.scalar_type()))
      return tiled_forward(here, x, weight, bias, activation, keep_z);
  }
#ifndef FASTGAN_SIMT
  if constexpr (std::is_same_v<Scope, CpuScope>) {
    if (is_thin(x, weight)) return thin_forward(here, x, weight, bias, activation, keep_z);
  }
#endif
  LayerOutput out;
  // The library adds a 16-bit bias before it rounds the product; a pass of our own would round twice.
  const bool narrow = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  const Tensor b = bias.defined() && !narrow ? bias.contiguous() : Tensor();
  Tensor z = bias.defined() && narrow ? at::addmm(bias, x, weight.t()) : at::mm(x, weight.t());
  const int64_t rows = z.size(0), cols = z.size(1);
  out.y = keep_z ? at::empty_like(z) : z;
  with_dtype(z.scalar_type(), "mlp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    bias_act(here, activation, rows, cols, mutable_data<T>(z), optional_data<T>(b), mutable_data<T>(out.y));
  });
  if (keep_z) out.z = z;
  return out;
}

template <class Scope>
LayerGradient activation_backward(const Scope& here, const Tensor& grad_y, const Tensor& saved,
                                  LayerActivation activation, bool need_bias, bool reuse) {
  const Tensor g = grad_y.contiguous(), s = ready(saved, g);
  const bool identity = activation.activation == Activation::identity;
  LayerGradient out;
  out.grad_z = identity || (reuse && g.is_same(grad_y)) ? g : at::empty_like(g);
  if (need_bias) out.grad_bias = at::empty({g.size(1)}, g.options());
  if (identity && !need_bias) return out;
  with_dtype(g.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    T* const none = nullptr;
    act_backward(here, activation, g.size(0), g.size(1), data<T>(g), identity ? data<T>(g) : data<T>(s),
                 identity ? none : mutable_data<T>(out.grad_z), optional_mutable_data<T>(out.grad_bias));
  });
  return out;
}

template <class Scope>
ParameterGradients parameter_gradients(const Scope& here, const Tensor& grad_z, const Tensor& x, bool need_weight,
                                       bool need_bias) {
  if constexpr (has_tiles<Scope>) {
    if (need_weight && is_tiled(grad_z.size(1), x.size(1), x.size(0), x.scalar_type()))
      return tiled_parameter_gradients(here, grad_z, x, need_bias);
  }
  ParameterGradients gradients;
  if (need_bias)  // of no activation: the column sums alone
    gradients.grad_bias = activation_backward(here, grad_z, grad_z, {Activation::identity, 0.0}, true, false).grad_bias;
#ifndef FASTGAN_SIMT
  if constexpr (std::is_same_v<Scope, CpuScope>) {
    if (need_weight && prefers_thin(grad_z.size(1), x.size(1)) && WideRows<char>::fits(x) &&
        WideRows<char>::fits(grad_z)) {
      gradients.grad_weight = thin_weight_gradient(here, grad_z, x);
      return gradients;
    }
  }
#endif
  if (need_weight) gradients.grad_weight = at::mm(grad_z.t(), x);
  return gradients;
}

template <class Scope>
InputGradient input_gradient(const Scope& here, const Tensor& grad_z, const Tensor& weight, const Tensor& saved,
                             LayerActivation activation, bool keep_grad_x) {
  if constexpr (has_tiles<Scope>) {
    if (is_tiled(grad_z.size(0), weight.size(1), weight.size(0), grad_z.scalar_type()))
      return tiled_input_gradient(here, grad_z, weight, saved, activation, keep_grad_x);
  }
#ifndef FASTGAN_SIMT
  if constexpr (std::is_same_v<Scope, CpuScope>) {
    if (is_thin(grad_z, weight)) return {thin_input_gradient(here, grad_z, weight), Tensor()};
  }
#endif
  return {at::mm(grad_z, weight), Tensor()};
}

template <class Scope>
LayerSecondGradient activation_double_backward(const Scope& here, const Tensor& given_u, const Tensor& given_grad_y,
                                               const Tensor& given_saved, LayerActivation activation) {
  const Tensor u = given_u.contiguous(), saved = ready(given_saved, u);
  const Tensor grad_y = activation.is_curved() ? ready(given_grad_y, u) : u;  // else it is not read
  if (activation.activation == Activation::identity) return {u, Tensor()};
  LayerSecondGradient out{at::empty_like(u), activation.is_curved() ? at::empty_like(u) : Tensor()};
  with_dtype(u.scalar_type(), "mlp_double_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    act_double_backward(here, activation, u.numel(), data<T>(u), data<T>(grad_y), data<T>(saved),
                        mutable_data<T>(out.grad_grad_y), optional_mutable_data<T>(out.grad_z));
  });
  return out;
}

#define FASTGAN_INSTANTIATE(Scope)                                                                                     \
  template LayerOutput linear_forward<Scope>(const Scope&, const Tensor&, const Tensor&, const Tensor&,                \
                                             LayerActivation, bool);                                                   \
  template LayerGradient activation_backward<Scope>(const Scope&, const Tensor&, const Tensor&, LayerActivation, bool, \
                                                    bool);                                                             \
  template ParameterGradients parameter_gradients<Scope>(const Scope&, const Tensor&, const Tensor&, bool, bool);      \
  template InputGradient input_gradient<Scope>(const Scope&, const Tensor&, const Tensor&, const Tensor&,              \
                                               LayerActivation, bool);                                                 \
  template LayerSecondGradient activation_double_backward<Scope>(const Scope&, const Tensor&, const Tensor&,           \
                                                                 const Tensor&, LayerActivation);
FASTGAN_EACH_SCOPE(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::bindings
