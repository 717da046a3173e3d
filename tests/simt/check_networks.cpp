#include "../../csrc/cuda/mlp.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::Activation;

// The whole network against the layers in double; each layer's y and grad_z are read back as the kernels rounded them.
template <class T>
void check_network(int64_t batch, const std::vector<int>& sizes, bool tf32, int processors, int lowest, bool input,
                   fastgan::ActivationArguments hidden = {Activation::leaky_relu, 0.2}) {
  const Context context(processors);
  const int count = int(sizes.size()) - 1;
  const double relative = tf32 && sizeof(T) == 4 ? 3e-3 : 3 * tolerance<T>;
  const std::string about = std::string(name_of<T>()) + (tf32 ? " tf32" : "") + " network of " + std::to_string(count) +
                            " layers on " + std::to_string(batch);
  const auto x = random<T>(batch * sizes[0], -1, 1), grad_output = random<T>(batch * sizes[count], -1, 1);
  std::vector<Buffer<T>> weights, biases, y, z, grad_z, grad_weights, grad_biases;
  Buffer<T> grad_input(batch * sizes[0]);
  fastgan::cuda::NarrowNetwork<T> network = {};
  network.batch = batch;
  network.count = count;
  network.lowest = lowest;
  network.grad_output = grad_output.data();
  network.grad_input = input ? grad_input.data() : nullptr;
  network.input_width = sizes[0];
  for (int l = 0; l < count; ++l) {
    weights.push_back(random<T>(sizes[l + 1] * sizes[l], -0.3, 0.3));
    biases.push_back(random<T>(sizes[l + 1]));
    y.emplace_back(batch * sizes[l + 1]);
    z.emplace_back(batch * sizes[l + 1]);
    grad_z.emplace_back(batch * sizes[l + 1]);
    grad_weights.emplace_back(sizes[l + 1] * sizes[l]);
    grad_biases.emplace_back(sizes[l + 1]);
  }
  const fastgan::ActivationArguments tanh{Activation::tanh, 0};
  for (int l = 0; l < count; ++l) {
    auto& layer = network.layers[l];
    layer.in = sizes[l];
    layer.out = sizes[l + 1];
    layer.activation = l + 1 < count ? hidden : tanh;
    layer.weight = weights[l].data();
    layer.bias = l == 1 ? nullptr : biases[l].data();
    layer.x = l == 0 ? x.data() : y[l - 1].data();
    layer.z = z[l].data();
    layer.y = y[l].data();
    layer.saved = saves_output(layer.activation) ? y[l].data() : z[l].data();
    layer.grad_z = grad_z[l].data();
    layer.grad_weight = l == 1 ? nullptr : grad_weights[l].data();
    layer.grad_bias = grad_biases[l].data();
  }
  expect(fastgan::cuda::is_narrow(context, network), about + " is narrow");
  fastgan::cuda::mlp_forward(context, network, tf32);
  fastgan::cuda::mlp_backward(context, network, tf32);
  for (int l = 0; l < count; ++l) {
    const Buffer<T>& from = l == 0 ? x : y[l - 1];
    const int in = sizes[l], out = sizes[l + 1];
    for (int64_t b = 0; b < batch; ++b)
      for (int o = 0; o < out; ++o) {
        double sum = l == 1 ? 0 : biases[l][o];
        for (int i = 0; i < in; ++i) sum += from[b * in + i] * weights[l][o * in + i];
        expect_close(z[l][b * out + o], sum, in * 0.1, relative, about + ", z");
        const double value = apply(network.layers[l].activation, sum);
        expect_close(y[l][b * out + o], value, in * 0.1, relative, about + ", y");
      }
  }
  for (int l = count; l-- > lowest;) {
    const int in = sizes[l], out = sizes[l + 1];
    for (int64_t b = 0; b < batch; ++b)
      for (int o = 0; o < out; ++o) {
        double g = l + 1 == count ? grad_output[b * out + o] : 0;
        for (int k = 0; l + 1 < count && k < sizes[l + 2]; ++k)
          g += grad_z[l + 1][b * sizes[l + 2] + k] * weights[l + 1][k * out + o];
        const auto& layer = network.layers[l];
        const double exact = g * derivative(layer.activation, fastgan::load(layer.saved + b * out + o), 1);
        expect_close(grad_z[l][b * out + o], exact, 1 + out * 0.1, relative, about + ", grad_z");
      }
    for (int o = 0; o < out; ++o) {
      double bias_sum = 0;
      for (int64_t b = 0; b < batch; ++b) bias_sum += grad_z[l][b * out + o];
      expect_close(grad_biases[l][o], bias_sum, batch, relative, about + ", bias gradient");
      for (int i = 0; l != 1 && i < in; ++i) {
        double sum = 0;
        for (int64_t b = 0; b < batch; ++b) sum += grad_z[l][b * out + o] * (l == 0 ? x : y[l - 1])[b * in + i];
        expect_close(grad_weights[l][o * in + i], sum, batch, relative, about + ", weight gradient");
      }
    }
  }
  for (int64_t b = 0; input && b < batch; ++b)
    for (int i = 0; i < sizes[0]; ++i) {
      double sum = 0;
      for (int o = 0; o < sizes[1]; ++o) sum += grad_z[0][b * sizes[1] + o] * weights[0][o * sizes[0] + i];
      expect_close(grad_input[b * sizes[0] + i], sum, sizes[1] * 0.1, relative, about + ", input gradient");
    }
}

}  // namespace

void check_networks() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (const bool tf32 : {false, true}) {
      if (tf32 && !std::is_same_v<T, float>) continue;
      check_network<T>(19, {5, 33, 129, 7}, tf32, 3, 0, true);
      if (few) continue;
      check_network<T>(1, {1, 1, 1}, tf32, 1, 0, true);
      check_network<T>(17, {3, fastgan::cuda::max_narrow_width, 2}, tf32, 2, 0, true);
      check_network<T>(34, {70, 40, 130}, tf32, 2, 1, false);
    }
  });
  if (!few)
    for (int a = 0; a < fastgan::activation_count; ++a)
      check_network<float>(17, {3, 20, 5}, a % 2 == 1, 2, 0, a % 3 == 0, {Activation(a), 0.2});
  fastgan::cuda::NarrowNetwork<float> network = {};
  network.batch = 1;
  network.count = 2;
  network.layers[0].in = network.layers[1].out = 1024;
  network.layers[0].out = network.layers[1].in = 300;
  expect(!fastgan::cuda::is_narrow(Context(), network), "a hidden layer of 300 is not narrow");
  network.layers[0].out = network.layers[1].in = 256;
  expect(fastgan::cuda::is_narrow(Context(), network), "1024-256-1024 is narrow");
  network.layers[1].out = 0;
  expect(!fastgan::cuda::is_narrow(Context(), network), "a network without an output is not narrow");
  network.layers[1].out = 1024;
  network.layers[0].in = 0;
  expect(!fastgan::cuda::is_narrow(Context(), network), "a network without an input is not narrow");
  network.layers[0].in = 1024;
  network.batch = 0;
  expect(!fastgan::cuda::is_narrow(Context(), network), "an empty batch is not narrow");
  network.batch = 1;
  network.count = fastgan::cuda::max_narrow_layers + 1;
  expect(!fastgan::cuda::is_narrow(Context(), network), "nine layers are not narrow");
}

}  // namespace checks
