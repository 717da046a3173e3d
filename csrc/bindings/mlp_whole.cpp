#include "mlp_whole.h"

#include "layer_path.h"

#ifndef FASTGAN_SIMT
#include "../cpu/mlp.h"
#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/mlp.h"
#endif

namespace fastgan::bindings {

namespace {

// How a scope's kernels take a whole MLP. Each has
//   Network<T>(count)                 what its kernels take: an MlpPass<T> (core/mlp.h) with `layers`
//   accepts(x, weights)               whether to try at all; with_dtype(dtype, f) then calls f(Tag<T>)
//   fits(here, network)               whether the kernels take it
//   forward, backward(here, network)
//   set_input(call, x)                forward's input
//   keeps_intermediates               whether backward can keep grad_z and grad_y
//   needs_grad_z                      whether backward needs a place for every grad_z
//   has_double_backward               whether there is a SecondNetwork<T>(count), an MlpPass<T> too, and
//   double_backward
template <class Scope>
struct WholeMlp;

#ifndef FASTGAN_SIMT

// Memory for the length of a call, aligned to a cache line, which at::empty's is not everywhere.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    Tensor& memory = bytes <= most_kept ? of_thread() : own_;
    if (!memory.defined() || static_cast<size_t>(memory.numel()) < bytes + 64)
      memory = at::empty({static_cast<int64_t>(bytes) + 64}, at::kByte);
    at_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.mutable_data_ptr()) + 63) / 64 * 64);
  }
  void* at() const { return at_; }

 private:
  // Memory up to this size stays with its thread: memory that is new at each call costs a page fault for every 4 KB
  // (`digits`: 570 a step, a tenth of its time).
  static constexpr size_t most_kept = 8 << 20;

  static Tensor& of_thread() {
    static thread_local Tensor memory;
    return memory;
  }

  Tensor own_;
  void* at_;
};

template <>
struct WholeMlp<CpuScope> {
  static constexpr bool keeps_intermediates = true, needs_grad_z = false, has_double_backward = true;

  template <class Pass, class Layer>
  struct WithLayers : Pass {
    explicit WithLayers(size_t count) : list(count) { this->layers = list.data(); }
    WithLayers(const WithLayers&) = delete;  // layers points into list
    std::vector<Layer> list;
  };
  template <class T>
  using Network = WithLayers<cpu::Mlp<T>, MlpLayer<T>>;
  template <class T>
  using SecondNetwork = WithLayers<cpu::MlpSecondPass<T>, cpu::MlpSecondLayer<T>>;

  static bool accepts(const Tensor& x, TensorList weights) {
    if (x.scalar_type() != at::kFloat && x.scalar_type() != at::kDouble) return false;
    if (x.size(0) == 0) return false;
    double elements = 0;
    bool all_thin = true;
    for (const Tensor& w : weights) {
      if (w.numel() == 0) return false;
      elements += static_cast<double>(w.numel());
      all_thin = all_thin && prefers_thin(w.size(0), w.size(1));
    }
    return !all_thin && prefers_whole(x.size(0), elements);
  }

  template <class F>
  static void with_dtype(at::ScalarType dtype, const F& f) {
    at::internal::lazy_init_num_threads();
    dtype == at::kFloat ? f(Tag<float>{}) : f(Tag<double>{});
  }

  template <class Call>
  static void set_input(Call& call, const Tensor& x) {  // of any strides
    call.network.input = {call.data(x), x.size(1), x.stride(0), x.stride(1)};
  }
  template <class T>
  static bool fits(const CpuScope&, const cpu::Mlp<T>&) {
    return true;
  }
  template <class T>
  static void forward(const CpuScope& here, const cpu::Mlp<T>& network) {
    cpu::mlp_forward<T>(here, network, Scratch(cpu::mlp_forward_scratch<T>(here, network)).at());
  }
  template <class T>
  static void backward(const CpuScope& here, const cpu::Mlp<T>& network) {
    cpu::mlp_backward<T>(here, network, Scratch(cpu::mlp_backward_scratch<T>(here, network)).at());
  }
  template <class T>
  static void double_backward(const CpuScope& here, const cpu::MlpSecondPass<T>& network) {
    cpu::mlp_double_backward<T>(here, network, Scratch(cpu::mlp_double_backward_scratch<T>(here, network)).at());
  }
};

#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)

template <>
struct WholeMlp<CudaScope> {
  static constexpr bool keeps_intermediates = false, needs_grad_z = true, has_double_backward = false;

  template <class T>
  struct Network : cuda::NarrowNetwork<T> {
    explicit Network(size_t) {}
  };

  static bool accepts(const Tensor& x, TensorList weights) {
    bool narrow = weights.size() > 1 && weights.size() <= cuda::max_narrow_layers && prefers_narrow(x.size(0));
    for (const Tensor& w : weights) narrow = narrow && w.size(0) <= 1024 && w.size(1) <= 1024;
    return narrow;
  }

  template <class F>
  static void with_dtype(at::ScalarType dtype, const F& f) {
    bindings::with_dtype(dtype, "mlp", f);
  }

  template <class Call>
  static void set_input(Call& call, const Tensor& x) {
    call.network.layers[0].x = call.keep(x);
  }
  template <class T>
  static bool fits(const CudaScope& here, const Network<T>& network) {
    return cuda::is_narrow<T>(here, network);
  }
  template <class T>
  static void forward(const CudaScope& here, const Network<T>& network) {
    cuda::mlp_forward<T>(here, network, allow_tf32());
  }
  template <class T>
  static void backward(const CudaScope& here, Network<T>& network) {
    network.input_width = network.layers[0].in;
    cuda::mlp_backward<T>(here, network, allow_tf32());
  }
};

#endif

// A call as the kernels take it, and what keeps its memory alive.
template <class T, class Network>
struct WholeCall {
  WholeCall(const Tensor& x, TensorList weights, const Layers& layers) : network(weights.size()), options(x.options()) {
    network.batch = x.size(0);
    network.count = static_cast<int>(weights.size());
    for (size_t l = 0; l < weights.size(); ++l) {
      auto& layer = network.layers[l];
      layer.in = static_cast<decltype(layer.in)>(weights[l].size(1));
      layer.out = static_cast<decltype(layer.out)>(weights[l].size(0));
      layer.activation = layers[l];
    }
  }

  static const T* data(const Tensor& tensor) { return bindings::data<T>(tensor); }
  // Of the tensor as a contiguous matrix, or null where it is undefined.
  const T* keep(const Tensor& tensor) {
    if (!tensor.defined()) return nullptr;
    if (tensor.is_contiguous()) return data(tensor);
    kept.push_back(tensor.contiguous());
    return data(kept.back());
  }
  T* make(Tensor& tensor, at::IntArrayRef sizes) {
    tensor = at::empty(sizes, options);
    return mutable_data<T>(tensor);
  }

  Network network;
  at::TensorOptions options;
  std::vector<Tensor> kept;
};

}  // namespace

template <class Scope>
std::optional<std::vector<LayerOutput>> whole_forward(const Scope& here, const Tensor& x, TensorList weights,
                                                      TensorList biases, const Layers& layers, bool keep) {
  using Whole = WholeMlp<Scope>;
  std::optional<std::vector<LayerOutput>> outputs;
  if (!Whole::accepts(x, weights)) return outputs;
  Whole::with_dtype(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    WholeCall<T, typename Whole::template Network<T>> call(x, weights, layers);
    auto& network = call.network;
    if (!Whole::fits(here, network)) return;
    outputs.emplace(weights.size());
    Whole::set_input(call, x);
    for (size_t l = 0; l < weights.size(); ++l) {
      auto& layer = network.layers[l];
      LayerOutput& out = (*outputs)[l];
      layer.weight = call.keep(weights[l]);
      layer.bias = call.keep(biases[l]);
      if (keep || l + 1 == weights.size()) layer.y = call.make(out.y, {network.batch, layer.out});
      if (keep && !layers[l].saves_output()) layer.z = call.make(out.z, {network.batch, layer.out});
    }
    Whole::forward(here, network);
  });
  return outputs;
}

template <class Scope>
std::optional<MlpGradients> whole_backward(const Scope& here, const Tensor& grad_output, const Tensor& x,
                                           TensorList weights, TensorList outputs, TensorList saved,
                                           const Layers& layers, const Flags& need, const Kept& kept,
                                           bool keep_intermediates) {
  using Whole = WholeMlp<Scope>;
  std::optional<MlpGradients> gradients;
  if (!Whole::accepts(x, weights) || kept.lowest >= weights.size() ||
      (keep_intermediates && !Whole::keeps_intermediates))
    return gradients;
  Whole::with_dtype(x.scalar_type(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    WholeCall<T, typename Whole::template Network<T>> call(x, weights, layers);
    auto& network = call.network;
    network.lowest = static_cast<int>(kept.lowest);
    if (!Whole::fits(here, network)) return;
    MlpGradients& made = gradients.emplace(weights.size());
    network.grad_output = call.keep(grad_output);
    if (need.input) network.grad_input = call.make(made.input, x.sizes());
    for (size_t l = 0; l < weights.size(); ++l) {
      auto& layer = network.layers[l];
      layer.weight = call.keep(weights[l]);
      layer.x = call.keep(l == 0 ? x : outputs[l - 1]);
      layer.saved = call.keep(saved[l]);
      if (need.weights[l]) layer.grad_weight = call.make(made.weights[l], weights[l].sizes());
      if (need.biases[l]) layer.grad_bias = call.make(made.biases[l], {layer.out});
      const bool keeps_z = keep_intermediates && kept.grad_z(l), keeps_y = keep_intermediates && kept.grad_y(l);
      if (keeps_z || Whole::needs_grad_z)
        layer.grad_z = call.make(keeps_z ? made.grad_z[l] : call.kept.emplace_back(), {network.batch, layer.out});
      if (keeps_y) layer.grad_y = call.make(made.grad_y[l], {network.batch, layer.out});
    }
    Whole::backward(here, network);
  });
  return gradients;
}

template <class Scope>
std::optional<MlpSecondGradients> whole_double_backward(const Scope& here, const Tensor& grad_input_bar,
                                                        const Tensor& x, TensorList weights, TensorList outputs,
                                                        TensorList saved, const MlpIntermediates& kept,
                                                        const Layers& layers, bool need_grad_output,
                                                        const Flags& need) {
  using Whole = WholeMlp<Scope>;
  std::optional<MlpSecondGradients> gradients;
  if constexpr (Whole::has_double_backward) {
    const auto is_usual = [&](const Tensor& matrix, int64_t width) {
      return matrix.dim() == 2 && matrix.size(0) == x.size(0) && matrix.size(1) == width &&
             matrix.scalar_type() == x.scalar_type() && matrix.device() == x.device();
    };
    bool usual = Whole::accepts(x, weights) && is_usual(grad_input_bar, x.size(1));
    for (size_t l = 0; usual && l < weights.size(); ++l) {
      const int64_t width = weights[l].size(0);
      usual = is_usual(kept.grad_z[l], width) && (!layers[l].is_curved() || is_usual(kept.grad_y[l], width));
    }
    if (!usual) return gradients;
    Whole::with_dtype(x.scalar_type(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      WholeCall<T, typename Whole::template SecondNetwork<T>> call(x, weights, layers);
      auto& network = call.network;
      MlpSecondGradients& made = gradients.emplace(weights.size());
      while (!need.input && network.lowest < network.count && !need.weights[network.lowest] &&
             !need.biases[network.lowest])
        ++network.lowest;
      const int highest = network.highest();
      network.grad_input_bar = call.keep(grad_input_bar);
      if (need_grad_output)
        network.grad_output_bar = call.make(made.grad_output, {network.batch, weights[weights.size() - 1].size(0)});
      if (need.input && highest >= 0) network.grad_input = call.make(made.input, x.sizes());
      for (int l = 0; l < network.count; ++l) {
        auto& layer = network.layers[l];
        layer.weight = call.keep(weights[l]);
        layer.kept_grad_z = call.keep(kept.grad_z[l]);
        if (layers[l].activation != Activation::identity) layer.saved = call.keep(saved[l]);
        if (layers[l].is_curved()) layer.kept_grad_y = call.keep(kept.grad_y[l]);
        if (need.weights[l]) layer.grad_weight = call.make(made.weights[l], weights[l].sizes());
        if (l > highest) continue;
        layer.x = call.keep(l == 0 ? x : outputs[l - 1]);
        if (need.biases[l]) layer.grad_bias = call.make(made.biases[l], {layer.out});
      }
      Whole::double_backward(here, network);
    });
  }
  return gradients;
}

#define FASTGAN_INSTANTIATE(Scope)                                                                                   \
  template std::optional<std::vector<LayerOutput>> whole_forward<Scope>(const Scope&, const Tensor&, TensorList,     \
                                                                        TensorList, const Layers&, bool);            \
  template std::optional<MlpGradients> whole_backward<Scope>(const Scope&, const Tensor&, const Tensor&, TensorList, \
                                                             TensorList, TensorList, const Layers&, const Flags&,    \
                                                             const Kept&, bool);                                     \
  template std::optional<MlpSecondGradients> whole_double_backward<Scope>(                                           \
      const Scope&, const Tensor&, const Tensor&, TensorList, TensorList, TensorList, const MlpIntermediates&,       \
      const Layers&, bool, const Flags&);
FASTGAN_EACH_SCOPE(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::bindings
