// Which kernels run the layers on CUDA: the one place that decides.
//   narrow    the whole network in one launch (cuda/mlp.h), where it fits
//   tiled     one launch a product, with its epilogue (cuda/linear.h)
//   library   torch's product, that is cuBLAS or cuBLASLt, and the kernels around it
//   automatic whichever is expected to be fastest: narrow networks on small batches narrow, products below the
//             crossover tiled, the others by the library
#pragma once

#include <string>

#include "common.h"

namespace fastgan::bindings {

enum class LayerPath { automatic, narrow, tiled, library };

LayerPath layer_path();
void set_layer_path(const std::string& name);
std::string layer_path_name();

// Whether float products may run in tf32: torch's setting for products on CUDA.
bool allow_tf32();

// Whether a product of m x n results, each a sum of k terms, is this project's kernel's rather than the library's.
bool is_tiled(int64_t m, int64_t n, int64_t k, at::ScalarType dtype);

// The same of float operands that are rounded to bfloat16, which the library must first be given as such.
bool is_tiled_bf16(int64_t m, int64_t n, int64_t k);

// Whether a network that fits the narrow kernels should run on them at this batch size.
bool prefers_narrow(int64_t batch);

}  // namespace fastgan::bindings
