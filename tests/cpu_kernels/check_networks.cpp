#include "../../csrc/cpu/mlp.h"
#include "check.h"
#include "layers.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::ActivationArguments;
using fastgan::cpu::Context;

struct Shape {
  int64_t batch;
  std::vector<int64_t> widths;
  std::vector<ActivationArguments> activations;
  int no_bias = -1;  // the layer without one

  int count() const { return int(activations.size()); }
};

// A network with everything that its passes read. What a pass reads of the one before is the plain loop's, rounded to
// T, so that it is the same for both.
template <class T>
struct Network {
  explicit Network(const Shape& s) : shape(s), input(random<T>(s.batch * s.widths[0], -1, 1)) {
    Numbers x = numbers(input);
    for (int l = 0; l < s.count(); ++l) {
      weight.push_back(random<T>(s.widths[l + 1] * s.widths[l], -0.4, 0.4));
      bias.push_back(random<T>(s.widths[l + 1]));
      z.push_back(linear(s.batch, s.widths[l], s.widths[l + 1], x, numbers(weight[l]),
                         l == s.no_bias ? Numbers() : numbers(bias[l])));
      y.push_back(activated(s.activations[l], z[l]));
      x = y[l];
      kept_y.push_back(rounded_to<T>(y[l])), kept_z.push_back(rounded_to<T>(z[l]));
    }
  }
  const std::vector<T>& x(int l) const { return l == 0 ? input : kept_y[l - 1]; }
  const std::vector<T>& saved(int l) const { return saves_output(shape.activations[l]) ? kept_y[l] : kept_z[l]; }

  template <class Layer>
  void fill(int l, Layer& layer) const {
    layer.in = shape.widths[l], layer.out = shape.widths[l + 1], layer.activation = shape.activations[l];
    layer.weight = weight[l].data(), layer.bias = l == shape.no_bias ? nullptr : bias[l].data();
    layer.x = x(l).data(), layer.saved = saved(l).data();
  }
  std::string about() const {
    std::string name = "network of";
    for (const int64_t width : shape.widths) name += " " + std::to_string(width);
    return name + " on " + std::to_string(shape.batch);
  }

  const Shape shape;
  std::vector<T> input;
  std::vector<std::vector<T>> weight, bias, kept_y, kept_z;
  std::vector<Numbers> y, z;
};

template <class T>
void check_forward(const Network<T>& network, bool columns) {
  const Shape& s = network.shape;
  const int count = s.count();
  std::vector<T> turned(network.input.size());
  for (int64_t r = 0; r < s.batch; ++r)
    for (int64_t c = 0; c < s.widths[0]; ++c) turned[c * s.batch + r] = network.input[r * s.widths[0] + c];
  std::vector<std::vector<T>> y, z;
  for (int l = 0; l < count; ++l) y.emplace_back(s.batch * s.widths[l + 1]), z.emplace_back(y[l].size());
  std::vector<fastgan::MlpLayer<T>> layers(count);
  for (int l = 0; l < count; ++l) {
    network.fill(l, layers[l]);
    layers[l].y = y[l].data();
    if (!saves_output(s.activations[l])) layers[l].z = z[l].data();
  }
  fastgan::cpu::Mlp<T> mlp;
  mlp.batch = s.batch, mlp.count = count, mlp.layers = layers.data();
  mlp.input = {network.input.data(), s.widths[0], s.widths[0], 1};
  if (columns) mlp.input = {turned.data(), s.widths[0], 1, s.batch};
  Scratch scratch(fastgan::cpu::mlp_forward_scratch(Context(), mlp));
  fastgan::cpu::mlp_forward(Context(), mlp, scratch.data());
  for (int l = 0; l < count; ++l) {
    const std::string about = network.about() + ", layer " + std::to_string(l);
    expect(y[l], network.y[l], about + "'s y");
    if (layers[l].z != nullptr) expect(z[l], network.z[l], about + "'s z");
  }
}

// Gradients, and what the double backward of them reads.
template <class T>
struct Backward {
  explicit Backward(const Network<T>& network)
      : grad_output(random<T>(network.shape.batch * network.shape.widths.back(), -1, 1)) {
    const Shape& s = network.shape;
    grad_y.resize(s.count()), grad_z.resize(s.count());
    Numbers g = numbers(grad_output);
    for (int l = s.count(); l-- > 0;) {
      grad_y[l] = g;
      grad_z[l] = gradient(s.activations[l], g, numbers(network.saved(l)));
      g = by_input(s.batch, s.widths[l], s.widths[l + 1], grad_z[l], numbers(network.weight[l]));
    }
    grad_input = g;
  }
  std::vector<T> grad_output;
  std::vector<Numbers> grad_y, grad_z;
  Numbers grad_input;
};

template <class T>
void check_backward(const Network<T>& network, const Backward<T>& backward) {
  const Shape& s = network.shape;
  const int count = s.count();
  std::vector<std::vector<T>> weights, biases, grad_z;
  std::vector<T> input(network.input.size());
  std::vector<fastgan::MlpLayer<T>> layers(count);
  for (int l = 0; l < count; ++l) {
    weights.emplace_back(network.weight[l].size()), biases.emplace_back(network.bias[l].size());
    grad_z.emplace_back(network.kept_y[l].size());
    network.fill(l, layers[l]);
    layers[l].grad_weight = weights[l].data(), layers[l].grad_bias = biases[l].data();
    if (l % 2 == 1) layers[l].grad_z = grad_z[l].data();
  }
  fastgan::cpu::Mlp<T> mlp;
  mlp.batch = s.batch, mlp.count = count, mlp.layers = layers.data();
  mlp.grad_output = backward.grad_output.data(), mlp.grad_input = input.data();
  Scratch scratch(fastgan::cpu::mlp_backward_scratch(Context(), mlp));
  fastgan::cpu::mlp_backward(Context(), mlp, scratch.data());
  for (int l = 0; l < count; ++l) {
    const std::string about = network.about() + ", layer " + std::to_string(l);
    expect(weights[l], by_weight(s.batch, s.widths[l], s.widths[l + 1], backward.grad_z[l], numbers(network.x(l))),
           about + "'s weight gradient");
    expect(biases[l], by_bias(s.batch, s.widths[l + 1], backward.grad_z[l]), about + "'s bias gradient");
    if (l % 2 == 1) expect(grad_z[l], backward.grad_z[l], about + "'s gradient by z");
  }
  expect(input, backward.grad_input, network.about() + ", gradient by the input");
}

// Of a penalty on the gradient by the input, whose cotangent is v.
template <class T>
void check_double_backward(const Network<T>& network, const Backward<T>& backward) {
  const Shape& s = network.shape;
  const int count = s.count();
  const auto v = random<T>(network.input.size(), -1, 1);
  std::vector<std::vector<T>> weights, biases, kept_z, kept_y;
  std::vector<T> input(network.input.size()), output(backward.grad_output.size());
  std::vector<fastgan::cpu::MlpSecondLayer<T>> layers(count);
  for (int l = 0; l < count; ++l) {
    weights.emplace_back(network.weight[l].size()), biases.emplace_back(network.bias[l].size());
    kept_z.push_back(rounded_to<T>(backward.grad_z[l])), kept_y.push_back(rounded_to<T>(backward.grad_y[l]));
    network.fill(l, layers[l]);
    layers[l].kept_grad_z = kept_z[l].data(), layers[l].kept_grad_y = kept_y[l].data();
    layers[l].grad_weight = weights[l].data(), layers[l].grad_bias = biases[l].data();
  }
  fastgan::cpu::MlpSecondPass<T> pass;
  pass.batch = s.batch, pass.count = count, pass.layers = layers.data();
  pass.grad_output = backward.grad_output.data(), pass.grad_input_bar = v.data();
  pass.grad_output_bar = output.data();
  const int highest = pass.highest();
  if (highest >= 0)
    pass.grad_input = input.data();
  else
    pass.lowest = count;
  Scratch scratch(fastgan::cpu::mlp_double_backward_scratch(Context(), pass));
  fastgan::cpu::mlp_double_backward(Context(), pass, scratch.data());

  std::vector<Numbers> by_weights, z_bar(count);
  Numbers bar = numbers(v);
  for (int l = 0; l < count; ++l) {
    const int64_t in = s.widths[l], out = s.widths[l + 1];
    by_weights.push_back(by_weight(s.batch, in, out, numbers(kept_z[l]), bar));
    const Numbers z = linear(s.batch, in, out, bar, numbers(network.weight[l]), {});
    const Numbers grad_y = numbers(kept_y[l]), saved = numbers(network.saved(l));
    for (size_t i = 0; i < z.size(); ++i) z_bar[l].push_back(z[i] * grad_y[i] * second(s.activations[l], saved[i]));
    bar = gradient(s.activations[l], z, saved);
  }
  expect(output, bar, network.about() + ", double backward by grad_output");
  Numbers below;
  for (int l = count; l-- > 0;) {
    const int64_t in = s.widths[l], out = s.widths[l + 1];
    const std::string about = network.about() + ", double backward of layer " + std::to_string(l);
    if (l <= highest) {
      Numbers grad_z = z_bar[l];
      if (!below.empty()) {
        const Numbers through = gradient(s.activations[l], below, numbers(network.saved(l)));
        for (size_t i = 0; i < grad_z.size(); ++i) grad_z[i] = grad_z[i] + through[i];
      }
      by_weights[l] = by_weight(s.batch, in, out, grad_z, numbers(network.x(l)), by_weights[l]);
      expect(biases[l], by_bias(s.batch, out, grad_z), about + " by the bias");
      below = by_input(s.batch, in, out, grad_z, numbers(network.weight[l]));
    }
    expect(weights[l], by_weights[l], about + " by the weight");
  }
  if (highest >= 0) expect(input, below, network.about() + ", double backward by the input");
}

template <class T>
void check_network(const Shape& shape) {
  const fastgan::Arithmetic<T> arithmetic;
  const Network<T> network(shape);
  check_forward(network, false);
  check_forward(network, true);
  const Backward<T> backward(network);
  check_backward(network, backward);
  check_double_backward(network, backward);
}

template <class T>
void check_all() {
  using enum Activation;
  const ActivationArguments leaky{leaky_relu, 0.25};
  check_network<T>({70, {5, 70, 33, 1}, {leaky, {tanh, 0}, {identity, 0}}, 1});
  check_network<T>({45, {300, 13, 40}, {{gelu, 0}, {relu, 0}}});     // longer than a block of a sum
  check_network<T>({96, {90, 70, 40}, {{silu, 0}, {softplus, 0}}});  // several threads
  check_network<T>({33, {40, 3, 37, 2}, {{elu, 0}, {sigmoid, 0}, leaky}});
  check_network<T>({64, {8, 24, 36, 12}, {{relu, 0}, leaky, {identity, 0}}});  // whole panels and tiles
  check_network<T>({1, {1, 1}, {{tanh, 0}}});
}

}  // namespace

void check_networks() {
  check_all<float>();
  check_all<double>();
}

}  // namespace checks
