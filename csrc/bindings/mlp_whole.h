// A whole MLP in one parallel region on the CPU (cpu/mlp.h), where that is faster than the library's products.
#pragma once

#include <optional>

#include "mlp.h"

namespace fastgan::bindings {

#ifndef FASTGAN_SIMT

// All layers' outputs (with `keep` y of each, and z of those that need it; else the last y alone), or nothing where the
// network is to run layer by layer. x is (batch, in).
std::optional<std::vector<LayerOutput>> whole_forward(const CpuScope& here, const Tensor& x, TensorList weights,
                                                      const Biases& biases, const Layers& layers, bool keep);

struct WholeGradients {
  Tensor grad_input;
  std::vector<Tensor> grad_weights, grad_biases;  // defined where asked for
  std::vector<Tensor> grad_z, grad_y;             // defined where kept
};

// The gradients asked for by `need`, and the intermediates where those are kept, or nothing where the network is to run
// layer by layer. All matrices have the batch as rows.
std::optional<WholeGradients> whole_backward(const CpuScope& here, const Tensor& grad_output, const Tensor& x,
                                             TensorList weights, TensorList outputs, TensorList saved,
                                             const Layers& layers, const Flags& need, const Kept& kept,
                                             bool keep_intermediates);

#endif

}  // namespace fastgan::bindings
