// A whole MLP at once, where the scope's kernels take it and layer_path.h prefers them: in one parallel region on the
// CPU (cpu/mlp.h), in one launch on CUDA (cuda/mlp.h).
#pragma once

#include <optional>

#include "mlp.h"

namespace fastgan::bindings {

// All layers' outputs (with `keep` y of each, and z of those that need it; else the last y alone), or nothing where the
// network is to run layer by layer. x is (batch, in).
template <class Scope>
std::optional<std::vector<LayerOutput>> whole_forward(const Scope& here, const Tensor& x, TensorList weights,
                                                      TensorList biases, const Layers& layers, bool keep);

struct MlpGradients {
  explicit MlpGradients(size_t count) : weights(count), biases(count), grad_z(count), grad_y(count) {}

  Tensor input;
  std::vector<Tensor> weights, biases;  // defined where asked for
  std::vector<Tensor> grad_z, grad_y;   // by each layer's z and y, defined where kept
};

// The gradients asked for by `need`, and the intermediates where those are kept, or nothing where the network is to run
// layer by layer. All matrices have the batch as rows.
template <class Scope>
std::optional<MlpGradients> whole_backward(const Scope& here, const Tensor& grad_output, const Tensor& x,
                                           TensorList weights, TensorList outputs, TensorList saved,
                                           const Layers& layers, const Flags& need, const Kept& kept,
                                           bool keep_intermediates);

// What the double backward reads of the backward pass: matrices that have the batch as rows.
struct MlpIntermediates {
  std::vector<Tensor> grad_z, grad_y;
};

struct MlpSecondGradients {
  explicit MlpSecondGradients(size_t count) : weights(count), biases(count) {}

  Tensor grad_output, input;            // matrices
  std::vector<Tensor> weights, biases;  // all of them undefined where not asked for, or zero everywhere
};

// The double backward where the gradient by the input alone has a cotangent, or nothing where the network is to run
// layer by layer.
template <class Scope>
std::optional<MlpSecondGradients> whole_double_backward(const Scope& here, const Tensor& grad_input_bar,
                                                        const Tensor& x, TensorList weights, TensorList outputs,
                                                        TensorList saved, const MlpIntermediates& kept,
                                                        const Layers& layers, bool need_grad_output, const Flags& need);

}  // namespace fastgan::bindings
