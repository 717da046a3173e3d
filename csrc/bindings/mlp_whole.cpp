#include "mlp_whole.h"

#ifndef FASTGAN_SIMT

#include "../cpu/mlp.h"
#include "../cpu/simd.h"
#include "layer_path.h"

namespace fastgan::bindings {

namespace {

// To a cache line, which at::empty's memory is not everywhere.
void* aligned(const Tensor& bytes) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(bytes.mutable_data_ptr()) + 63) / 64 * 64);
}

// Scratch memory up to this size stays with its thread: memory that is new at each call costs a page fault for every
// 4 KB (`digits`: 570 a step, a tenth of its time).
constexpr size_t most_kept_scratch = 8 << 20;

void* kept_scratch(size_t bytes) {
  static thread_local Tensor memory;
  if (!memory.defined() || static_cast<size_t>(memory.numel()) < bytes + 64)
    memory = at::empty({static_cast<int64_t>(bytes) + 64}, at::kByte);
  return aligned(memory);
}

// A call as the kernels take it, and what keeps its memory alive.
template <class T>
struct WholeNetwork {
  WholeNetwork(const Tensor& x, TensorList weights, const Layers& layers) : list(weights.size()), options(x.options()) {
    mlp.batch = x.size(0);
    mlp.count = static_cast<int>(weights.size());
    mlp.layers = list.data();
    for (size_t l = 0; l < weights.size(); ++l) {
      list[l].in = weights[l].size(1);
      list[l].out = weights[l].size(0);
      list[l].activation = layers[l];
      list[l].weight = keep(weights[l]);
    }
  }

  const T* keep(const Tensor& tensor) {
    if (!tensor.defined()) return nullptr;
    if (tensor.is_contiguous()) return data<T>(tensor);
    kept.push_back(tensor.contiguous());
    return data<T>(kept.back());
  }
  T* make(Tensor& tensor, at::IntArrayRef sizes) {
    tensor = at::empty(sizes, options);
    return mutable_data<T>(tensor);
  }
  void* scratch(size_t bytes) {
    if (bytes <= most_kept_scratch) return kept_scratch(bytes);
    kept.push_back(at::empty({static_cast<int64_t>(bytes) + 64}, options.dtype(at::kByte)));
    return aligned(kept.back());
  }

  cpu::Mlp<T> mlp;
  std::vector<cpu::MlpLayer<T>> list;
  at::TensorOptions options;
  std::vector<Tensor> kept;
};

// Products of one pass, above which the library's are faster, alone and beside each other: `wide` (1.3e10) by 8 to 30
// %. Up to 6e8 (`mnist`, `digits` at 1024 samples) these are faster on two threads, and within 10 % on one.
constexpr double most_flops = 1.5e9;

bool prefers_whole(const Tensor& x, TensorList weights) {
  if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) return false;
  if (x.size(0) == 0) return false;
  double products = 0;
  for (const Tensor& w : weights) {
    if (w.numel() == 0) return false;
    products += static_cast<double>(w.numel());
  }
  if (layer_path() != LayerPath::automatic) return layer_path() != LayerPath::library;
  // The library has instructions that the baseline lacks where FASTGAN_ISA asks for it, and is no slower elsewhere.
  return cpu::isa() != cpu::Isa::baseline && 2 * static_cast<double>(x.size(0)) * products <= most_flops;
}

template <class F>
void with_wide_dtype(at::ScalarType dtype, const F& f) {
  at::internal::lazy_init_num_threads();
  dtype == at::kFloat ? f(Tag<float>{}) : f(Tag<double>{});
}

}  // namespace

std::optional<std::vector<LayerOutput>> whole_forward(const CpuScope& here, const Tensor& x, TensorList weights,
                                                      const Biases& biases, const Layers& layers, bool keep) {
  if (!prefers_whole(x, weights)) return std::nullopt;
  std::vector<LayerOutput> outputs(weights.size());
  with_wide_dtype(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    WholeNetwork<T> call(x, weights, layers);
    call.mlp.input = data<T>(x);
    call.mlp.row_stride = x.stride(0);
    call.mlp.col_stride = x.stride(1);
    for (size_t l = 0; l < weights.size(); ++l) {
      cpu::MlpLayer<T>& layer = call.list[l];
      layer.bias = call.keep(biases.get(l).value_or(Tensor()));
      if (keep || l + 1 == weights.size()) layer.y = call.make(outputs[l].y, {call.mlp.batch, layer.out});
      if (keep && !layers[l].saves_output()) layer.z = call.make(outputs[l].z, {call.mlp.batch, layer.out});
    }
    cpu::mlp_forward(here, call.mlp, call.scratch(cpu::mlp_forward_scratch(here, call.mlp)));
  });
  return outputs;
}

std::optional<WholeGradients> whole_backward(const CpuScope& here, const Tensor& grad_output, const Tensor& x,
                                             TensorList weights, TensorList outputs, TensorList saved,
                                             const Layers& layers, const Flags& need, const Kept& kept,
                                             bool keep_intermediates) {
  if (!prefers_whole(x, weights) || kept.lowest >= weights.size()) return std::nullopt;
  const size_t count = weights.size();
  WholeGradients gradients{{},
                           std::vector<Tensor>(count),
                           std::vector<Tensor>(count),
                           std::vector<Tensor>(count),
                           std::vector<Tensor>(count)};
  with_wide_dtype(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    WholeNetwork<T> call(x, weights, layers);
    call.mlp.lowest = static_cast<int>(kept.lowest);
    call.mlp.grad_output = call.keep(grad_output);
    if (need.input) call.mlp.grad_input = call.make(gradients.grad_input, x.sizes());
    for (size_t l = 0; l < count; ++l) {
      cpu::MlpLayer<T>& layer = call.list[l];
      layer.x = call.keep(l == 0 ? x : outputs[l - 1]);
      layer.saved = call.keep(saved[l]);
      if (need.weights[l]) layer.grad_weight = call.make(gradients.grad_weights[l], weights[l].sizes());
      if (need.biases[l]) layer.grad_bias = call.make(gradients.grad_biases[l], {layer.out});
      if (keep_intermediates && kept.grad_z(l))
        layer.grad_z = call.make(gradients.grad_z[l], {call.mlp.batch, layer.out});
      if (keep_intermediates && kept.grad_y(l))
        layer.grad_y = call.make(gradients.grad_y[l], {call.mlp.batch, layer.out});
    }
    cpu::mlp_backward(here, call.mlp, call.scratch(cpu::mlp_backward_scratch(here, call.mlp)));
  });
  return gradients;
}

}  // namespace fastgan::bindings

#endif
