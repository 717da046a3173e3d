#include "mlp_narrow.h"

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)

#include "../cuda/mlp.h"
#include "layer_path.h"

namespace fastgan::bindings {

namespace {

// A call as the kernels take it, and what keeps its memory alive.
template <class T>
struct NarrowNetwork {
  NarrowNetwork(const Tensor& x, TensorList weights, const Layers& layers) {
    network.batch = x.size(0);
    network.count = static_cast<int>(weights.size());
    for (size_t l = 0; l < weights.size(); ++l) {
      cuda::NarrowLayer<T>& layer = network.layers[l];
      layer.in = static_cast<int>(weights[l].size(1));
      layer.out = static_cast<int>(weights[l].size(0));
      layer.activation = layers[l];
    }
  }

  const T* keep(const Tensor& tensor) {
    if (!tensor.defined()) return nullptr;
    kept.push_back(tensor.contiguous());
    return data<T>(kept.back());
  }
  T* keep_empty(int64_t rows, int64_t cols, const Tensor& like) {
    kept.push_back(at::empty({rows, cols}, like.options()));
    return mutable_data<T>(kept.back());
  }

  cuda::NarrowNetwork<T> network = {};
  std::vector<Tensor> kept;
};

bool may_be_narrow(const Tensor& x, TensorList weights) {
  bool narrow = weights.size() > 1 && weights.size() <= cuda::max_narrow_layers && prefers_narrow(x.size(0));
  for (const Tensor& w : weights) narrow = narrow && w.size(0) <= 1024 && w.size(1) <= 1024;
  return narrow;
}

}  // namespace

std::optional<std::vector<LayerOutput>> narrow_forward(const CudaScope& here, const Tensor& x, TensorList weights,
                                                       const Biases& biases, const Layers& layers, bool keep) {
  std::optional<std::vector<LayerOutput>> outputs;
  if (!may_be_narrow(x, weights)) return outputs;
  with_dtype(x.scalar_type(), "mlp", [&](auto tag) {
    using T = typename decltype(tag)::type;
    NarrowNetwork<T> call(x, weights, layers);
    if (!cuda::is_narrow(here, call.network)) return;
    outputs.emplace(weights.size());
    call.network.layers[0].x = call.keep(x);
    for (size_t l = 0; l < weights.size(); ++l) {
      cuda::NarrowLayer<T>& layer = call.network.layers[l];
      LayerOutput& out = (*outputs)[l];
      const auto empty = [&] { return at::empty({x.size(0), weights[l].size(0)}, x.options()); };
      layer.weight = call.keep(weights[l]);
      layer.bias = call.keep(biases.get(l).value_or(Tensor()));
      if (keep || l + 1 == weights.size()) out.y = empty();
      if (keep && !layers[l].saves_output()) out.z = empty();
      if (out.y.defined()) layer.y = mutable_data<T>(out.y);
      if (out.z.defined()) layer.z = mutable_data<T>(out.z);
    }
    cuda::mlp_forward(here, call.network, allow_tf32());
  });
  return outputs;
}

bool narrow_backward(const CudaScope& here, const Tensor& grad_output, const Tensor& x, TensorList weights,
                     TensorList outputs, TensorList saved, const Layers& layers, const Flags& need, size_t lowest,
                     Tensor& grad_input, std::vector<Tensor>& grad_weights, std::vector<Tensor>& grad_biases) {
  bool done = false;
  if (!may_be_narrow(x, weights) || lowest >= weights.size()) return done;
  with_dtype(x.scalar_type(), "mlp_backward", [&](auto tag) {
    using T = typename decltype(tag)::type;
    NarrowNetwork<T> call(x, weights, layers);
    call.network.lowest = static_cast<int>(lowest);
    if (!cuda::is_narrow(here, call.network)) return;
    done = true;
    call.network.grad_output = call.keep(grad_output);
    if (need.input) {
      grad_input = at::empty(x.sizes(), x.options());
      call.network.grad_input = mutable_data<T>(grad_input);
      call.network.input_width = call.network.layers[0].in;
    }
    for (size_t l = 0; l < weights.size(); ++l) {
      cuda::NarrowLayer<T>& layer = call.network.layers[l];
      layer.weight = call.keep(weights[l]);
      layer.x = call.keep(l == 0 ? x : outputs[l - 1]);
      layer.saved = call.keep(saved[l]);
      layer.grad_z = call.keep_empty(x.size(0), layer.out, x);
      if (need.weights[l]) grad_weights[l] = at::empty(weights[l].sizes(), x.options());
      if (need.biases[l]) grad_biases[l] = at::empty({weights[l].size(0)}, x.options());
      if (need.weights[l]) layer.grad_weight = mutable_data<T>(grad_weights[l]);
      if (need.biases[l]) layer.grad_bias = mutable_data<T>(grad_biases[l]);
    }
    cuda::mlp_backward(here, call.network, allow_tf32());
  });
  return done;
}

}  // namespace fastgan::bindings

#endif
