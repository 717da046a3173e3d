// The mlp op, layer by layer: what its kernels (mlp_layers.cpp, mlp_meta.cpp) and its derivatives (mlp.cpp) agree on.
//
// mlp_forward returns, packed in one list: y_1 ... y_L, then z_l of each layer whose derivative is a function of z
// rather than of y, in order of l.
// mlp_backward returns, packed: the gradients asked for by `need` (one flag for input, then one a weight, then one a
// bias), then, where asked for, the intermediates that the double backward wants: grad_z_1 ... grad_z_L, then
// grad_y_1 ... grad_y_L; without rows where it wants none (see Kept).
#pragma once

#include <algorithm>

#include "linear.h"

namespace fastgan::bindings {

// One entry a layer.
struct Layers {
  Layers(at::IntArrayRef activations, at::ArrayRef<double> slopes) {
    TORCH_CHECK(activations.size() == slopes.size(),
                "mlp: activations and slopes must have the same number of entries");
    for (size_t l = 0; l < activations.size(); ++l) {
      TORCH_CHECK(activations[l] >= 0 && activations[l] < activation_count, "mlp: activations[", l, "] must be in [0, ",
                  activation_count, "), not ", activations[l]);
      list.push_back({{static_cast<Activation>(activations[l]), slopes[l]}});
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

// What every mlp op asks of its layers, Meta's too.
inline void check_layers(const Tensor& input, TensorList weights, const Layers& layers) {
  TORCH_CHECK(!weights.empty() && weights.size() == layers.count(),
              "mlp: weights and activations must have the same number of entries, at least one, not ", weights.size(),
              " and ", layers.count());
  TORCH_CHECK(input.dim() >= 1, "mlp: input must have at least one dimension");
  c10::SymInt width = input.sym_size(-1);
  for (const Tensor& w : weights) {
    TORCH_CHECK(w.dim() == 2 && w.sym_size(1) == width && w.scalar_type() == input.scalar_type() &&
                    w.device() == input.device(),
                "mlp: a weight of shape ", w.sym_sizes(), ", ", w.scalar_type(), " on ", w.device(), " must have ",
                width, " columns and be ", input.scalar_type(), " on ", input.device());
    width = w.sym_size(0);
  }
}

// What every backward op asks of the packed list that mlp_forward returned.
inline void check_outputs(const Tensor& input, TensorList weights, TensorList outputs, const Layers& layers) {
  size_t expected = layers.count();
  for (const LayerActivation& layer : layers.list) expected += !layer.saves_output();
  TORCH_CHECK(outputs.size() == expected, "mlp: outputs must have ", expected, " entries, not ", outputs.size());
  size_t next_z = layers.count();
  const auto check = [&](const Tensor& output, size_t l) {
    TORCH_CHECK(output.scalar_type() == input.scalar_type() && output.device() == input.device() &&
                    output.dim() == input.dim() && output.sym_size(-1) == weights[l].sym_size(0) &&
                    output.sym_sizes().slice(0, output.dim() - 1) == input.sym_sizes().slice(0, input.dim() - 1),
                "mlp: an output of layer ", l, " of shape ", output.sym_sizes(), ", ", output.scalar_type(),
                ", is not what mlp_forward returns for this input");
  };
  for (size_t l = 0; l < layers.count(); ++l) {
    check(outputs[l], l);
    if (!layers[l].saves_output()) check(outputs[next_z++], l);
  }
}

// What mlp_double_backward asks of its packed lists.
inline void check_double_backward(TensorList cotangents, at::IntArrayRef given, TensorList intermediates,
                                  at::IntArrayRef need, const Layers& layers) {
  const size_t flags = 1 + 2 * layers.count();
  TORCH_CHECK(given.size() == flags && need.size() == flags + 1, "mlp_double_backward: there must be ", flags,
              " flags given and ", flags + 1, " of need, not ", given.size(), " and ", need.size());
  const size_t set = std::count_if(given.begin(), given.end(), [](int64_t flag) { return flag != 0; });
  TORCH_CHECK(cotangents.size() == set, "mlp_double_backward: there must be ", set, " cotangents, not ",
              cotangents.size());
  TORCH_CHECK(intermediates.size() == 2 * layers.count(), "mlp_double_backward: there must be ", 2 * layers.count(),
              " intermediates, not ", intermediates.size());
}

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

// The op, as from Python without its checks: biases one a layer, undefined where it has none. Calls the kernels without
// the dispatcher where nobody else is to see the call.
Tensor call_mlp(const Tensor& input, TensorList weights, TensorList biases, at::IntArrayRef activations,
                at::ArrayRef<double> slopes);

#ifndef FASTGAN_SIMT

// The kernels of the CPU, for call_mlp and its derivative.
Tensor mlp_on_cpu(const Tensor& input, TensorList weights, TensorList biases, const Layers& layers);
std::vector<Tensor> mlp_forward_on_cpu(const Tensor& input, TensorList weights, TensorList biases,
                                       const Layers& layers);
std::vector<Tensor> mlp_backward_on_cpu(const Tensor& grad_output, const Tensor& input, TensorList weights,
                                        TensorList outputs, at::IntArrayRef activations, at::ArrayRef<double> slopes,
                                        at::IntArrayRef need);

#endif

}  // namespace fastgan::bindings
