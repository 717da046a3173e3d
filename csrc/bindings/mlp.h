// The mlp op, layer by layer: what its kernels (mlp_cpu.cpp, mlp_meta.cpp) and its derivatives (mlp.cpp) agree on.
//
// mlp_forward returns, packed in one list: y_1 ... y_L, then z_l of each layer whose derivative is a function of z
// rather than of y, in order of l.
// mlp_backward returns, packed: the gradients asked for by `need` (one flag for input, then one a weight, then one a
// bias), then, where asked for, the intermediates that the double backward wants: grad_z_1 ... grad_z_L, then
// grad_y_1 ... grad_y_L; without rows where it wants none (see Kept).
#pragma once

#include "linear.h"

namespace fastgan::bindings {

// One entry a layer.
struct Layers {
  Layers(at::IntArrayRef activations, at::ArrayRef<double> slopes) {
    TORCH_CHECK(activations.size() == slopes.size(),
                "mlp: activations and slopes must have the same number of entries");
    for (size_t l = 0; l < activations.size(); ++l) {
      TORCH_CHECK(activations[l] >= 0 && activations[l] < static_cast<int64_t>(Activation::count), "mlp: activations[",
                  l, "] must be in [0, ", static_cast<int64_t>(Activation::count), "), not ", activations[l]);
      list.push_back({static_cast<Activation>(activations[l]), slopes[l]});
    }
  }

  size_t count() const { return list.size(); }
  const LayerActivation& operator[](size_t l) const { return list[l]; }

  // Picks, from mlp_forward's packed list, what the derivative of each layer is a function of.
  std::vector<Tensor> saved(TensorList outputs) const {
    std::vector<Tensor> out;
    size_t next_z = count();
    for (size_t l = 0; l < count(); ++l) out.push_back(list[l].saves_output() ? outputs[l] : outputs[next_z++]);
    return out;
  }

  std::vector<LayerActivation> list;
};

// One flag (0 or 1: a schema has no list of bools) for each of input, the weights and the biases, in this order.
struct Flags {
  Flags(at::IntArrayRef packed, size_t layers) {
    TORCH_CHECK(packed.size() == 1 + 2 * layers, "mlp: there must be ", 1 + 2 * layers, " flags, not ", packed.size());
    input = packed[0] != 0;
    for (size_t l = 0; l < layers; ++l) {
      weights.push_back(packed[1 + l] != 0);
      biases.push_back(packed[1 + layers + l] != 0);
    }
  }
  bool input;
  std::vector<bool> weights, biases;
};

// Which intermediates mlp_backward keeps for its double backward: of the layers that it came to, grad_z, and, where the
// activation is curved, grad_y.
struct Kept {
  Kept(const Flags& need, const Layers& layers) : layers(layers) {
    // Below the first layer whose parameters need a gradient there is nothing to do, unless the input needs one.
    while (!need.input && lowest < layers.count() && !need.weights[lowest] && !need.biases[lowest]) ++lowest;
  }
  bool grad_z(size_t l) const { return l >= lowest; }
  bool grad_y(size_t l) const { return l >= lowest && layers[l].is_curved(); }

  const Layers& layers;
  size_t lowest = 0;
};

// Which outputs of the double backward there are at all, given which gradients have cotangents. What is zero for lack
// of any path has none, as in torch: the bias of a last layer without activation, say, has no part in a gradient
// penalty.
struct SecondOrderPaths {
  SecondOrderPaths(const Flags& cotangents, const Layers& layers)
      : weights(layers.count()), biases(layers.count()), grad_z(layers.count()) {
    bool reached = cotangents.input;  // whether the cotangent of grad_y_{l-1} exists
    std::vector<bool> entered(layers.count());
    for (size_t l = 0; l < layers.count(); ++l) {
      entered[l] = reached;
      reached = reached || cotangents.weights[l] || cotangents.biases[l];
      grad_z[l] = reached;
    }
    grad_output = reached;
    bool output_path = false;  // whether the cotangent of y_l exists
    for (size_t l = layers.count(); l-- > 0;) {
      const bool z_path = output_path || (grad_z[l] && layers[l].activation != Activation::identity);
      weights[l] = entered[l] || z_path;
      biases[l] = z_path;
      output_path = z_path || cotangents.weights[l];
    }
    input = output_path;
  }
  bool grad_output, input;
  std::vector<bool> weights, biases;
  std::vector<bool> grad_z;  // whether the cotangent of grad_z_l exists
};

using Biases = c10::List<std::optional<Tensor>>;
using MlpSignature = Tensor(const Tensor&, TensorList, const Biases&, at::IntArrayRef, at::ArrayRef<double>);
using MlpForward = std::vector<Tensor>(const Tensor&, TensorList, const Biases&, at::IntArrayRef, at::ArrayRef<double>);
using MlpBackward = std::vector<Tensor>(const Tensor&, const Tensor&, TensorList, TensorList, at::IntArrayRef,
                                        at::ArrayRef<double>, at::IntArrayRef, bool);
using MlpDoubleBackward = std::vector<Tensor>(TensorList, at::IntArrayRef, const Tensor&, TensorList, TensorList,
                                              TensorList, at::IntArrayRef, at::ArrayRef<double>, at::IntArrayRef);

}  // namespace fastgan::bindings
