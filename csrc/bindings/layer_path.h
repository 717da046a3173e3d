// Which kernels run the layers of an MLP: the one place that decides.
//
//             on CUDA                                             on the CPU
//   narrow    the whole network in one launch (cuda/mlp.h),       the whole network in one parallel region (cpu/mlp.h)
//             where it fits, else as tiled
//   tiled     one launch a product, with its epilogue             as narrow
//             (cuda/linear.h)
//   library   torch's product (cuBLAS or cuBLASLt), and the       torch's product (MKL, oneDNN), and the kernels around
//             kernels around it                                   it
//   automatic whichever is expected to be fastest: narrow         the whole network where its products are few enough
//             networks on small batches narrow, products below    and the processor has AVX2, else the library; layers
//             the crossover tiled, the others by the library      with few outputs or inputs by kernels of their own
//                                                                 (cpu/thin_linear.h), where all are like that, or the
//                                                                 network runs layer by layer
#pragma once

#include <string>

#include "common.h"

namespace fastgan::bindings {

enum class LayerPath { automatic, narrow, tiled, library };

LayerPath layer_path();
void set_layer_path(const std::string& name);
// For this thread alone, whatever the others take; an empty name ends that.
void set_thread_layer_path(const std::string& name);
std::string layer_path_name();

// On CUDA: whether float products may run in tf32: torch's setting for products on CUDA.
bool allow_tf32();

// On CUDA: whether a product of m x n results, each a sum of k terms, is this project's kernel's rather than the
// library's.
bool is_tiled(int64_t m, int64_t n, int64_t k, at::ScalarType dtype);

// The same of float operands that are rounded to bfloat16, which the library must first be given as such.
bool is_tiled_bf16(int64_t m, int64_t n, int64_t k);

// On CUDA: whether a network that fits the narrow kernels should run on them at this batch size.
bool prefers_narrow(int64_t batch);

// The same of the networks of a step, of which a launch a layer has the updates within it, on a device that has
// clusters of so many blocks, or none: with clusters a step of `ring` took 115 us on an H200, with the narrow kernels
// 195; with widths of 32, 64 and 256 in its place 95, 108 and 124 against 149, 159 and 291. Of float64
// nothing was measured: its products would be the library's.
bool prefers_narrow_step(int64_t batch, at::ScalarType dtype, int largest_cluster);

#ifndef FASTGAN_SIMT
// On the CPU: whether an MLP whose weights have so many elements should run as a whole.
bool prefers_whole(int64_t batch, double elements);

// On the CPU: whether a layer with so many outputs and inputs is the thin kernels' (cpu/thin_linear.h), where it runs
// alone, or with others that are.
bool prefers_thin(int64_t out, int64_t in);
#endif

}  // namespace fastgan::bindings
