// The mlp ops on Meta tensors: shapes only, symbolic ones too.
#include "mlp.h"

namespace fastgan::bindings {

namespace {

// Of the shape (..., width), the leading dimensions those of like.
Tensor empty_like_rows(const Tensor& like, const c10::SymInt& width) {
  auto sizes = like.sym_sizes().vec();
  sizes.back() = width;
  return at::empty_symint(sizes, like.options());
}

// Of the shape (rows, width), rows the product of like's leading dimensions.
Tensor empty_matrix(const Tensor& like, const c10::SymInt& width) {
  c10::SymInt rows = 1;
  for (int64_t d = 0; d + 1 < like.dim(); ++d) rows = rows * like.sym_size(d);
  return at::empty_symint({rows, width}, like.options());
}

Tensor empty_rows(const Tensor& like, const c10::SymInt& width) { return at::empty_symint({0, width}, like.options()); }

Tensor empty_twin(const Tensor& like) { return at::empty_symint(like.sym_sizes(), like.options()); }

Tensor mlp_meta(const Tensor& input, TensorList weights, const Biases&, at::IntArrayRef activations,
                at::ArrayRef<double> slopes) {
  const Layers layers(activations, slopes);
  check_layers(input, weights, layers);
  return empty_like_rows(input, weights[layers.count() - 1].sym_size(0));
}

std::vector<Tensor> mlp_forward_meta(const Tensor& input, TensorList weights, const Biases&,
                                     at::IntArrayRef activations, at::ArrayRef<double> slopes) {
  const Layers layers(activations, slopes);
  check_layers(input, weights, layers);
  std::vector<Tensor> outputs;
  for (const Tensor& w : weights) outputs.push_back(empty_like_rows(input, w.sym_size(0)));
  for (size_t l = 0; l < layers.count(); ++l)
    if (!layers[l].saves_output()) outputs.push_back(empty_like_rows(input, weights[l].sym_size(0)));
  return outputs;
}

std::vector<Tensor> mlp_backward_meta(const Tensor&, const Tensor& input, TensorList weights, TensorList outputs,
                                      at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                      at::IntArrayRef need_flags, bool keep_intermediates) {
  const Layers layers(activations, slopes);
  check_layers(input, weights, layers);
  check_outputs(input, weights, outputs, layers);
  const size_t count = layers.count();
  const Flags need(need_flags, count);
  std::vector<Tensor> packed;
  if (need.input) packed.push_back(empty_twin(input));
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) packed.push_back(empty_twin(weights[l]));
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) packed.push_back(at::empty_symint({weights[l].sym_size(0)}, input.options()));
  if (!keep_intermediates) return packed;
  const Kept kept(need, layers);
  const auto push = [&](size_t l, bool has_rows) {
    const c10::SymInt width = weights[l].sym_size(0);
    packed.push_back(has_rows ? empty_matrix(input, width) : empty_rows(input, width));
  };
  for (size_t l = 0; l < count; ++l) push(l, kept.grad_z(l));
  for (size_t l = 0; l < count; ++l) push(l, kept.grad_y(l));
  return packed;
}

std::vector<Tensor> mlp_double_backward_meta(TensorList cotangents, at::IntArrayRef given, const Tensor& input,
                                             TensorList weights, TensorList outputs, TensorList intermediates,
                                             at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                             at::IntArrayRef need_flags) {
  const Layers layers(activations, slopes);
  check_layers(input, weights, layers);
  check_outputs(input, weights, outputs, layers);
  check_double_backward(cotangents, given, intermediates, need_flags, layers);
  const size_t count = layers.count();
  const Flags need(need_flags.slice(1), count);
  std::vector<Tensor> packed;
  if (need_flags[0]) packed.push_back(empty_twin(outputs[count - 1]));
  if (need.input) packed.push_back(empty_twin(input));
  for (size_t l = 0; l < count; ++l)
    if (need.weights[l]) packed.push_back(empty_twin(weights[l]));
  for (size_t l = 0; l < count; ++l)
    if (need.biases[l]) packed.push_back(at::empty_symint({weights[l].sym_size(0)}, input.options()));
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) {
  m.impl("mlp", mlp_meta);
  m.impl("mlp_forward", mlp_forward_meta);
  m.impl("mlp_backward", mlp_backward_meta);
  m.impl("mlp_double_backward", mlp_double_backward_meta);
}

}  // namespace fastgan::bindings
