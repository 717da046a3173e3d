#include "layer_path.h"

#include <ATen/Context.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <optional>

#include "../cuda/crossover.h"
#ifndef FASTGAN_SIMT
#include "../cpu/simd.h"
#include "../cpu/thin_linear.h"
#endif

namespace fastgan::bindings {

namespace {

constexpr std::array<const char*, 4> names = {"automatic", "narrow", "tiled", "library"};

std::atomic<LayerPath> path{LayerPath::automatic};
thread_local std::optional<LayerPath> path_of_thread;

LayerPath path_named(const std::string& name) {
  for (size_t i = 0; i < names.size(); ++i)
    if (name == names[i]) return static_cast<LayerPath>(i);
  TORCH_CHECK_VALUE(false, "the layer path must be automatic, narrow, tiled or library, not ", name);
}

}  // namespace

LayerPath layer_path() { return path_of_thread.value_or(path); }

std::string layer_path_name() { return names[static_cast<size_t>(layer_path())]; }

void set_layer_path(const std::string& name) { path = path_named(name); }

void set_thread_layer_path(const std::string& name) {
  path_of_thread = name.empty() ? std::nullopt : std::optional(path_named(name));
}

bool allow_tf32() {
#if TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 10
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
#elif TORCH_VERSION_MINOR == 9
  return at::globalContext().float32Precision("cuda", "matmul") == "tf32";
#else
  return at::globalContext().allowTF32CuBLAS();
#endif
}

bool is_tiled(int64_t m, int64_t n, int64_t k, at::ScalarType dtype) {
  if (layer_path() != LayerPath::automatic) return layer_path() != LayerPath::library;
  // Most of a tile of 64x64 would be empty: with one output 5 to 10 us on an H100, where the library's product of a
  // matrix and a vector takes 2.
  if (std::min(m, n) < 16) return false;
  double most = cuda::crossover::float32;
  if (dtype == at::kDouble) most = cuda::crossover::float64;
  if (dtype == at::kBFloat16 || dtype == at::kHalf) most = cuda::crossover::half;
  if (dtype == at::kFloat && allow_tf32()) most = cuda::crossover::tf32;
  return static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) <= most;
}

bool is_tiled_bf16(int64_t m, int64_t n, int64_t k) {
  if (layer_path() != LayerPath::automatic) return layer_path() != LayerPath::library;
  return static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k) <= cuda::crossover::bf16_operands;
}

bool prefers_narrow(int64_t batch) {
  if (layer_path() != LayerPath::automatic) return layer_path() == LayerPath::narrow;
  return batch <= cuda::crossover::narrow_batch;
}

bool prefers_narrow_step(int64_t batch, at::ScalarType dtype, int largest_cluster) {
  if (!prefers_narrow(batch)) return false;
  return layer_path() != LayerPath::automatic || largest_cluster <= 1 || dtype != at::kFloat;
}

#ifndef FASTGAN_SIMT

bool prefers_whole(int64_t batch, double elements) {
  if (layer_path() != LayerPath::automatic) return layer_path() != LayerPath::library;
  // Products of one pass, above which the library's are faster, alone and beside each other: `wide` (1.3e10) by 8 to 30
  // %. Up to 6e8 (`mnist`, `digits` at 1024 samples) these are faster on two threads, and within 10 % on one.
  constexpr double most_flops = 1.5e9;
  // The library has instructions that the baseline lacks where FASTGAN_ISA asks for it, and is no slower elsewhere.
  return cpu::isa() != cpu::Isa::baseline && 2 * static_cast<double>(batch) * elements <= most_flops;
}

bool prefers_thin(int64_t out, int64_t in) {
  return layer_path() == LayerPath::automatic && out > 0 && in > 0 && std::min(out, in) <= cpu::most_few;
}

#endif

}  // namespace fastgan::bindings
