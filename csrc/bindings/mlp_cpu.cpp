// The CPU kernels of the mlp ops: the loops over layers.
#include "mlp.h"

namespace fastgan::bindings {

namespace {

// The rows are counted, for reshape cannot infer them where there are no elements.
Tensor as_matrix(const Tensor& x, int64_t rows) { return x.dim() == 2 ? x : x.reshape({rows, x.size(-1)}); }

int64_t row_count(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  return rows;
}

// Runs all layers; on_layer(l, output) sees each.
template <class F>
void run_layers(const Tensor& input, TensorList weights, const Biases& biases, const Layers& layers, bool keep_z,
                const F& on_layer) {
  const WithoutAutocast guard;
  check_layers(input, weights, layers);
  TORCH_CHECK(biases.size() == weights.size(), "mlp: there must be one bias or None a layer");
  const int64_t rows = row_count(input);
  Tensor x = as_matrix(input, rows);
  for (size_t l = 0; l < weights.size(); ++l) {
    const std::optional<Tensor> given = biases.get(l);
    const Tensor bias = given ? *given : Tensor();
    TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weights[l].size(0) &&
                                    bias.scalar_type() == input.scalar_type() && bias.device() == input.device()),
                "mlp: biases[", l, "] must have shape (", weights[l].size(0), ") and the dtype and device of input");
    const LayerOutput out = linear_forward(x, weights[l], bias, layers[l], keep_z && !layers[l].saves_output());
    on_layer(l, out);
    x = out.y;
  }
}

Tensor with_leading_dimensions(const Tensor& matrix, const Tensor& like) {
  if (like.dim() == 2) return matrix;
  auto sizes = like.sizes().vec();
  sizes.back() = matrix.size(1);
  return matrix.view(sizes);
}

Tensor mlp_cpu(const Tensor& input, TensorList weights, const Biases& biases, at::IntArrayRef activations,
               at::ArrayRef<double> slopes) {
  Tensor y;
  run_layers(input, weights, biases, Layers(activations, slopes), false,
             [&](size_t, const LayerOutput& out) { y = out.y; });
  return with_leading_dimensions(y, input);
}

std::vector<Tensor> mlp_forward_cpu(const Tensor& input, TensorList weights, const Biases& biases,
                                    at::IntArrayRef activations, at::ArrayRef<double> slopes) {
  std::vector<Tensor> outputs, pre_activations;
  run_layers(input, weights, biases, Layers(activations, slopes), true, [&](size_t, const LayerOutput& out) {
    outputs.push_back(with_leading_dimensions(out.y, input));
    if (out.z.defined()) pre_activations.push_back(with_leading_dimensions(out.z, input));
  });
  outputs.insert(outputs.end(), pre_activations.begin(), pre_activations.end());
  return outputs;
}

std::vector<Tensor> mlp_backward_cpu(const Tensor& grad_output, const Tensor& input, TensorList weights,
                                     TensorList outputs, at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                     at::IntArrayRef need_flags, bool keep_intermediates) {
  const Layers layers(activations, slopes);
  const WithoutAutocast guard;
  check_layers(input, weights, layers);
  check_outputs(input, weights, outputs, layers);
  TORCH_CHECK(grad_output.sizes() == outputs[layers.count() - 1].sizes() &&
                  grad_output.scalar_type() == input.scalar_type() && grad_output.device() == input.device(),
              "mlp_backward: grad_output of shape ", grad_output.sizes(), ", ", grad_output.scalar_type(),
              ", must be like the output: shape ", outputs[layers.count() - 1].sizes(), ", ", input.scalar_type());
  const Flags need(need_flags, layers.count());
  const auto saved = layers.saved(outputs);
  const int64_t rows = row_count(input);
  const size_t count = layers.count();
  const Kept kept(need, layers);

  Tensor grad_input;
  std::vector<Tensor> grad_weights(count), grad_biases(count), grad_z(count), grad_y(count);
  Tensor g = as_matrix(grad_output, rows);
  for (size_t l = count; l-- > kept.lowest;) {
    const bool reuse = l + 1 < count && !keep_intermediates;  // the first g is the caller's
    const LayerGradient gradient = activation_backward(g, as_matrix(saved[l], rows), layers[l], need.biases[l], reuse);
    if (keep_intermediates) {
      // What is returned may not share the memory of what was given.
      grad_z[l] = gradient.grad_z.is_alias_of(grad_output) ? gradient.grad_z.clone() : gradient.grad_z;
      if (kept.grad_y(l)) grad_y[l] = g.is_alias_of(grad_output) ? g.clone(at::MemoryFormat::Contiguous) : g;
    }
    grad_biases[l] = gradient.grad_bias;
    if (need.weights[l])
      grad_weights[l] = at::mm(gradient.grad_z.t(), as_matrix(l == 0 ? input : outputs[l - 1], rows));
    if (l > kept.lowest || need.input) g = at::mm(gradient.grad_z, weights[l]);
  }
  if (need.input) grad_input = input.dim() == 2 ? g : g.view(input.sizes());

  std::vector<Tensor> packed;
  if (need.input) packed.push_back(grad_input);
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) packed.push_back(grad_weights[l]);
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) packed.push_back(grad_biases[l]);
  if (keep_intermediates) {
    for (auto* list : {&grad_z, &grad_y})
      for (size_t l = 0; l < count; ++l)
        packed.push_back((*list)[l].defined() ? (*list)[l] : at::empty({0, weights[l].size(0)}, input.options()));
  }
  return packed;
}

void accumulate_product(Tensor& sum, const Tensor& a, const Tensor& b) {
  if (sum.defined())
    sum.addmm_(a, b);
  else
    sum = at::mm(a, b);
}

// With bars for cotangents and h_0 = x, backward was
//   grad_z_l = grad_y_l act'(z_l);  gW_l = grad_z_l^T h_{l-1};  gb_l = sum grad_z_l;  grad_y_{l-1} = grad_z_l W_l.
// Reversed, its layers come first to last; then what reached z_l and h_l goes back through forward, last to first.
std::vector<Tensor> mlp_double_backward_cpu(TensorList cotangents, at::IntArrayRef cotangent_flags, const Tensor& input,
                                            TensorList weights, TensorList outputs, TensorList intermediates,
                                            at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                            at::IntArrayRef need_flags) {
  const Layers layers(activations, slopes);
  const WithoutAutocast guard;
  check_layers(input, weights, layers);
  check_outputs(input, weights, outputs, layers);
  check_double_backward(cotangents, cotangent_flags, intermediates, need_flags, layers);
  const size_t count = layers.count();
  const int64_t rows = row_count(input);
  const Flags given(cotangent_flags, count);
  const bool need_grad_output = need_flags[0] != 0;
  const Flags need(need_flags.slice(1), count);
  const auto saved = layers.saved(outputs);
  const auto h_before = [&](size_t l) { return as_matrix(l == 0 ? input : outputs[l - 1], rows); };

  size_t next = 0;
  Tensor grad_y_bar = given.input ? as_matrix(cotangents[next++], rows) : Tensor();
  std::vector<Tensor> weight_bars(count), bias_bars(count);  // cotangents of the weight and bias gradients
  for (size_t l = 0; l < count; ++l)
    if (given.weights[l]) weight_bars[l] = cotangents[next++];
  for (size_t l = 0; l < count; ++l)
    if (given.biases[l]) bias_bars[l] = cotangents[next++];

  std::vector<Tensor> grad_weights(count), grad_biases(count), z_bar(count), h_bar(count + 1);  // h_bar[l] is of h_l
  for (size_t l = 0; l < count; ++l) {
    const Tensor &grad_z = intermediates[l], &grad_y = intermediates[count + l];
    Tensor grad_z_bar;
    if (grad_y_bar.defined()) {
      grad_z_bar = at::mm(grad_y_bar, weights[l].t());
      if (need.weights[l]) accumulate_product(grad_weights[l], grad_z.t(), grad_y_bar);
    }
    if (weight_bars[l].defined()) {
      accumulate_product(grad_z_bar, h_before(l), weight_bars[l].t());
      accumulate_product(h_bar[l], grad_z, weight_bars[l]);
    }
    if (bias_bars[l].defined())
      grad_z_bar = grad_z_bar.defined() ? grad_z_bar.add_(bias_bars[l]) : bias_bars[l].expand_as(grad_z).contiguous();
    if (!grad_z_bar.defined()) continue;
    const LayerSecondGradient second =
        activation_double_backward(grad_z_bar, grad_y, as_matrix(saved[l], rows), layers[l]);
    grad_y_bar = second.grad_grad_y;
    z_bar[l] = second.grad_z;
  }

  const bool parameters_wanted = [&] {
    bool any = need.input;
    for (size_t l = 0; l < count; ++l) any = any || need.weights[l] || need.biases[l];
    return any;
  }();
  for (size_t l = count; parameters_wanted && l-- > 0;) {
    Tensor z = z_bar[l];
    if (h_bar[l + 1].defined()) {
      const Tensor through =
          activation_backward(h_bar[l + 1], as_matrix(saved[l], rows), layers[l], false, true).grad_z;
      z = z.defined() ? z.add_(through) : through;
    }
    if (!z.defined()) continue;
    if (need.biases[l]) grad_biases[l] = z.sum(0);
    if (need.weights[l]) accumulate_product(grad_weights[l], z.t(), h_before(l));
    if (l > 0 || need.input) accumulate_product(h_bar[l], z, weights[l]);
  }

  // A path may exist and be zero everywhere, through a piecewise linear activation.
  std::vector<Tensor> packed;
  const auto pack = [&](const Tensor& value, at::IntArrayRef sizes) {
    packed.push_back(value.defined() ? value.reshape(sizes) : at::zeros(sizes, input.options()));
  };
  if (need_grad_output) pack(grad_y_bar, outputs[count - 1].sizes());
  if (need.input) pack(h_bar[0], input.sizes());
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) pack(grad_weights[l], weights[l].sizes());
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) pack(grad_biases[l], {weights[l].size(0)});
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(fastgan, CPU, m) {
  m.impl("mlp", mlp_cpu);
  m.impl("mlp_forward", mlp_forward_cpu);
  m.impl("mlp_backward", mlp_backward_cpu);
  m.impl("mlp_double_backward", mlp_double_backward_cpu);
}

}  // namespace fastgan::bindings
