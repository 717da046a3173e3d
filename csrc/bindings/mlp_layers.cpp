// The kernels of the mlp ops, for every scope that the build has: the loops over layers.
#include "mlp.h"
#include "mlp_whole.h"

namespace fastgan::bindings {

namespace {

// The rows are counted, for reshape cannot infer them where there are no elements.
Tensor as_matrix(const Tensor& x, int64_t rows) { return x.dim() == 2 ? x : x.reshape({rows, x.size(-1)}); }

std::vector<Tensor> as_matrices(TensorList list, int64_t rows) {
  std::vector<Tensor> matrices;
  for (const Tensor& x : list) matrices.push_back(as_matrix(x, rows));
  return matrices;
}

int64_t row_count(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  return rows;
}

// biases: one a layer, undefined where it has none.
void check_biases(const Tensor& input, TensorList weights, TensorList biases, const Layers& layers) {
  check_layers(input, weights, layers);
  TORCH_CHECK(biases.size() == weights.size(), "mlp: there must be one bias or None a layer");
  for (size_t l = 0; l < weights.size(); ++l) {
    const Tensor& bias = biases[l];
    TORCH_CHECK(!bias.defined() || (bias.dim() == 1 && bias.size(0) == weights[l].size(0) &&
                                    bias.scalar_type() == input.scalar_type() && bias.device() == input.device()),
                "mlp: biases[", l, "] must have shape (", weights[l].size(0), ") and the dtype and device of input");
  }
}

// The biases as memory has them. Torch resolves lazy signs and zeros without memory before it calls a kernel, but not
// those in a list of optional tensors.
std::vector<Tensor> with_memory(const Biases& biases) {
  std::vector<Tensor> out;
  for (const std::optional<Tensor> bias : biases)
    out.push_back(!bias || !bias->defined() ? Tensor()
                  : bias->_is_zerotensor()  ? at::zeros(bias->sizes(), bias->options())
                                            : bias->resolve_neg());
  return out;
}

// Runs all layers one by one; on_layer(l, output) sees each.
template <class Scope, class F>
void run_layers(const Scope& here, const Tensor& input, TensorList weights, TensorList biases, const Layers& layers,
                bool keep_z, const F& on_layer) {
  const WithoutAutocast guard;
  Tensor x = as_matrix(input, row_count(input));
  for (size_t l = 0; l < weights.size(); ++l) {
    const LayerOutput out =
        linear_forward(here, x, weights[l], biases[l], layers[l], keep_z && !layers[l].saves_output());
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

template <class Scope>
Tensor mlp_output(const Tensor& input, TensorList weights, TensorList biases, const Layers& layers) {
  const Scope here(input);
  check_biases(input, weights, biases, layers);
  if (const auto whole = whole_forward(here, as_matrix(input, row_count(input)), weights, biases, layers, false))
    return with_leading_dimensions(whole->back().y, input);
  Tensor y;
  run_layers(here, input, weights, biases, layers, false, [&](size_t, const LayerOutput& out) { y = out.y; });
  return with_leading_dimensions(y, input);
}

template <class Scope>
Tensor mlp_kernel(const Tensor& input, TensorList weights, const Biases& biases, at::IntArrayRef activations,
                  at::ArrayRef<double> slopes) {
  return mlp_output<Scope>(input, weights, with_memory(biases), Layers(activations, slopes));
}

template <class Scope>
std::vector<Tensor> mlp_outputs(const Tensor& input, TensorList weights, TensorList biases, const Layers& layers) {
  const Scope here(input);
  check_biases(input, weights, biases, layers);
  std::vector<Tensor> outputs, pre_activations;
  const auto collect = [&](size_t, const LayerOutput& out) {
    outputs.push_back(with_leading_dimensions(out.y, input));
    if (out.z.defined()) pre_activations.push_back(with_leading_dimensions(out.z, input));
  };
  const auto whole = whole_forward(here, as_matrix(input, row_count(input)), weights, biases, layers, true);
  if (!whole) run_layers(here, input, weights, biases, layers, true, collect);
  for (size_t l = 0; whole && l < layers.count(); ++l) collect(l, (*whole)[l]);
  outputs.insert(outputs.end(), pre_activations.begin(), pre_activations.end());
  return outputs;
}

template <class Scope>
std::vector<Tensor> mlp_forward_kernel(const Tensor& input, TensorList weights, const Biases& biases,
                                       at::IntArrayRef activations, at::ArrayRef<double> slopes) {
  return mlp_outputs<Scope>(input, weights, with_memory(biases), Layers(activations, slopes));
}

template <class Scope>
std::vector<Tensor> mlp_backward_kernel(const Tensor& grad_output, const Tensor& input, TensorList weights,
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

  const Scope here(input);

  const auto layer_input = [&](size_t l) { return as_matrix(l == 0 ? input : outputs[l - 1], rows); };
  auto whole = whole_backward(here, as_matrix(grad_output, rows), as_matrix(input, rows), weights,
                              as_matrices(outputs.slice(0, count), rows), as_matrices(saved, rows), layers, need, kept,
                              keep_intermediates);
  MlpGradients gradients = whole ? *std::move(whole) : MlpGradients(count);
  // g is grad_y of layer l; where the layer after has done it already, next_z is its grad_z.
  Tensor g = as_matrix(grad_output, rows), next_z;
  for (size_t l = count; !whole && l-- > kept.lowest;) {
    bool need_bias = need.biases[l];
    if (!next_z.defined()) {
      const bool reuse = l + 1 < count && !keep_intermediates;  // the first g is the caller's
      const bool with_weight = Scope::bias_with_weight && need.weights[l];
      const LayerGradient gradient =
          activation_backward(here, g, as_matrix(saved[l], rows), layers[l], need_bias && !with_weight, reuse);
      next_z = gradient.grad_z;
      if (gradient.grad_bias.defined()) {
        gradients.biases[l] = gradient.grad_bias;
        need_bias = false;
      }
    }
    const Tensor z = std::exchange(next_z, Tensor());
    if (keep_intermediates) {
      // What is returned may not share the memory of what was given.
      gradients.grad_z[l] = z.is_alias_of(grad_output) ? z.clone() : z;
      if (kept.grad_y(l)) gradients.grad_y[l] = g.is_alias_of(grad_output) ? g.clone(at::MemoryFormat::Contiguous) : g;
    }
    const ParameterGradients parameters = parameter_gradients(here, z, layer_input(l), need.weights[l], need_bias);
    gradients.weights[l] = parameters.grad_weight;
    if (need_bias) gradients.biases[l] = parameters.grad_bias;
    if (l == kept.lowest && !need.input) break;
    const InputGradient by_input = input_gradient(here, z, weights[l], l > 0 ? as_matrix(saved[l - 1], rows) : Tensor(),
                                                  l > 0 ? layers[l - 1] : LayerActivation{}, keep_intermediates);
    g = by_input.grad_x;
    next_z = by_input.grad_z_before;
  }
  if (need.input && !whole) gradients.input = g;
  if (need.input && input.dim() != 2) gradients.input = gradients.input.view(input.sizes());

  std::vector<Tensor> packed;
  if (need.input) packed.push_back(gradients.input);
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) packed.push_back(gradients.weights[l]);
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) packed.push_back(gradients.biases[l]);
  if (keep_intermediates) {
    for (auto* list : {&gradients.grad_z, &gradients.grad_y})
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

// The gradients that have cotangents, and these.
struct Cotangents {
  Cotangents(TensorList packed, at::IntArrayRef flags, size_t count, int64_t rows)
      : given(flags, count), weights(count), biases(count) {
    size_t next = 0;
    if (given.input) input = as_matrix(packed[next++], rows);
    for (size_t l = 0; l < count; ++l)
      if (given.weights[l]) weights[l] = packed[next++];
    for (size_t l = 0; l < count; ++l)
      if (given.biases[l]) biases[l] = packed[next++];
  }

  // As of a gradient penalty.
  bool of_input_alone() const {
    const auto none = [](const std::vector<bool>& flags) {
      return std::find(flags.begin(), flags.end(), true) == flags.end();
    };
    return given.input && none(given.weights) && none(given.biases);
  }

  Flags given;
  Tensor input;
  std::vector<Tensor> weights, biases;
};

// With bars for cotangents and h_0 = x, backward was
//   grad_z_l = grad_y_l act'(z_l);  gW_l = grad_z_l^T h_{l-1};  gb_l = sum grad_z_l;  grad_y_{l-1} = grad_z_l W_l.
// Reversed, its layers come first to last; then what reached z_l and h_l goes back through forward, last to first.
template <class Scope>
MlpSecondGradients double_backward_by_layers(const Scope& here, const Cotangents& bars, const Tensor& x,
                                             TensorList weights, TensorList outputs, TensorList saved,
                                             const MlpIntermediates& kept, const Layers& layers, const Flags& need) {
  const size_t count = layers.count();
  const auto h_before = [&](size_t l) { return l == 0 ? x : outputs[l - 1]; };
  MlpSecondGradients gradients(count);
  std::vector<Tensor> z_bar(count), h_bar(count + 1);  // h_bar[l] is of h_l
  Tensor grad_y_bar = bars.input;
  for (size_t l = 0; l < count; ++l) {
    const Tensor& grad_z = kept.grad_z[l];
    Tensor grad_z_bar;
    if (grad_y_bar.defined()) {
      grad_z_bar = at::mm(grad_y_bar, weights[l].t());
      if (need.weights[l]) accumulate_product(gradients.weights[l], grad_z.t(), grad_y_bar);
    }
    if (bars.weights[l].defined()) {
      accumulate_product(grad_z_bar, h_before(l), bars.weights[l].t());
      accumulate_product(h_bar[l], grad_z, bars.weights[l]);
    }
    if (bars.biases[l].defined())
      grad_z_bar = grad_z_bar.defined() ? grad_z_bar.add_(bars.biases[l])
                                        : bars.biases[l].expand_as(grad_z).clone(at::MemoryFormat::Contiguous);
    if (!grad_z_bar.defined()) continue;
    const LayerSecondGradient second =
        activation_double_backward(here, grad_z_bar, kept.grad_y[l], saved[l], layers[l]);
    grad_y_bar = second.grad_grad_y;
    z_bar[l] = second.grad_z;
  }
  gradients.grad_output = grad_y_bar;

  const bool parameters_wanted = [&] {
    bool any = need.input;
    for (size_t l = 0; l < count; ++l) any = any || need.weights[l] || need.biases[l];
    return any;
  }();
  for (size_t l = count; parameters_wanted && l-- > 0;) {
    Tensor z = z_bar[l];
    if (h_bar[l + 1].defined()) {
      const Tensor through = activation_backward(here, h_bar[l + 1], saved[l], layers[l], false, true).grad_z;
      z = z.defined() ? z.add_(through) : through;
    }
    if (!z.defined()) continue;
    if (need.biases[l]) gradients.biases[l] = z.sum(0);
    if (need.weights[l]) accumulate_product(gradients.weights[l], z.t(), h_before(l));
    if (l > 0 || need.input) accumulate_product(h_bar[l], z, weights[l]);
  }
  gradients.input = h_bar[0];
  return gradients;
}

template <class Scope>
std::vector<Tensor> mlp_double_backward_kernel(TensorList cotangents, at::IntArrayRef cotangent_flags,
                                               const Tensor& input, TensorList weights, TensorList outputs,
                                               TensorList intermediates, at::IntArrayRef activations,
                                               at::ArrayRef<double> slopes, at::IntArrayRef need_flags) {
  const Layers layers(activations, slopes);
  const WithoutAutocast guard;
  check_layers(input, weights, layers);
  check_outputs(input, weights, outputs, layers);
  check_double_backward(cotangents, cotangent_flags, intermediates, need_flags, layers);
  const size_t count = layers.count();
  const int64_t rows = row_count(input);
  const Scope here(input);
  const Cotangents bars(cotangents, cotangent_flags, count, rows);
  const bool need_grad_output = need_flags[0] != 0;
  const Flags need(need_flags.slice(1), count);
  const MlpIntermediates kept{intermediates.slice(0, count).vec(), intermediates.slice(count).vec()};
  const Tensor x = as_matrix(input, rows);
  const std::vector<Tensor> h = as_matrices(outputs.slice(0, count), rows),
                            saved = as_matrices(layers.saved(outputs), rows);

  std::optional<MlpSecondGradients> whole;
  if (bars.of_input_alone())
    whole = whole_double_backward(here, bars.input, x, weights, h, saved, kept, layers, need_grad_output, need);
  const MlpSecondGradients gradients =
      whole ? *std::move(whole) : double_backward_by_layers(here, bars, x, weights, h, saved, kept, layers, need);

  // A path may exist and be zero everywhere, through a piecewise linear activation.
  std::vector<Tensor> packed;
  const auto pack = [&](const Tensor& value, at::IntArrayRef sizes) {
    packed.push_back(value.defined() ? value.reshape(sizes) : at::zeros(sizes, input.options()));
  };
  if (need_grad_output) pack(gradients.grad_output, outputs[count - 1].sizes());
  if (need.input) pack(gradients.input, input.sizes());
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) pack(gradients.weights[l], weights[l].sizes());
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) pack(gradients.biases[l], {weights[l].size(0)});
  return packed;
}

template <class Scope>
void register_layer_kernels(torch::Library& m) {
  m.impl("mlp", mlp_kernel<Scope>);
  m.impl("mlp_forward", mlp_forward_kernel<Scope>);
  m.impl("mlp_backward", mlp_backward_kernel<Scope>);
  m.impl("mlp_double_backward", mlp_double_backward_kernel<Scope>);
}

}  // namespace

FASTGAN_KERNELS(register_layer_kernels)

#ifndef FASTGAN_SIMT

Tensor mlp_on_cpu(const Tensor& input, TensorList weights, TensorList biases, const Layers& layers) {
  return mlp_output<CpuScope>(input, weights, biases, layers);
}
std::vector<Tensor> mlp_forward_on_cpu(const Tensor& input, TensorList weights, TensorList biases,
                                       const Layers& layers) {
  return mlp_outputs<CpuScope>(input, weights, biases, layers);
}
std::vector<Tensor> mlp_backward_on_cpu(const Tensor& grad_output, const Tensor& input, TensorList weights,
                                        TensorList outputs, at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                        at::IntArrayRef need) {
  return mlp_backward_kernel<CpuScope>(grad_output, input, weights, outputs, activations, slopes, need, false);
}

#endif

}  // namespace fastgan::bindings
