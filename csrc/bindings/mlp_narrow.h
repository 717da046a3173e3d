// A whole narrow network in one launch, where the scope has such a kernel and the network fits it (cuda/mlp.h).
#pragma once

#include <optional>

#include "mlp.h"

namespace fastgan::bindings {

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)

// All layers' outputs (with `keep` y of each, and z of those that need it; else the last y alone), or nothing where the
// network is to run layer by layer. x is (batch, in).
std::optional<std::vector<LayerOutput>> narrow_forward(const CudaScope& here, const Tensor& x, TensorList weights,
                                                       const Biases& biases, const Layers& layers, bool keep);

// Whether the kernel has run; if so the gradients asked for are there. All matrices have the batch as rows.
bool narrow_backward(const CudaScope& here, const Tensor& grad_output, const Tensor& x, TensorList weights,
                     TensorList outputs, TensorList saved, const Layers& layers, const Flags& need, size_t lowest,
                     Tensor& grad_input, std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases);

#endif

}  // namespace fastgan::bindings
