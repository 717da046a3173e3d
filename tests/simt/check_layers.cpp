#include <map>

#include "../../csrc/cuda/linear.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::ActivationArguments;

using fastgan::cuda::Rounding;

constexpr double tf32_error = 2e-3, bf16_error = 1.6e-2;

template <class T>
std::string about(const char* what, int64_t batch, int64_t in, int64_t out) {
  return std::string(name_of<T>()) + " " + what + " of " + std::to_string(batch) + "x" + std::to_string(in) + "x" +
         std::to_string(out);
}

template <class T>
void check_products(int64_t batch, int64_t in, int64_t out, ActivationArguments act, Rounding rounding, int processors,
                    int offset, int largest_cluster = fastgan::cuda::max_cluster) {
  Context context(processors);
  context.largest_cluster = largest_cluster;
  const double relative = rounding == Rounding::none || sizeof(T) != 4 ? tolerance<T>
                          : rounding == Rounding::tf32                 ? tf32_error
                                                                       : bf16_error;
  const auto x = random<T>(batch * in, -1, 1, offset), weight = random<T>(out * in, -1, 1), bias = random<T>(out),
             grad_z = random<T>(batch * out, -1, 1), saved = random<T>(batch * in);
  Buffer<T> z(batch * out), y(batch * out), y_alone(batch * out), grad_x(batch * in), before(batch * in),
      grad_weight(out * in), grad_bias(out);
  fastgan::cuda::linear_forward(
      context,
      fastgan::cuda::LinearForward<T>{batch, in, out, x.data(), weight.data(), bias.data(), act, z.data(), y.data()},
      rounding);
  fastgan::cuda::linear_forward(
      context,
      fastgan::cuda::LinearForward<T>{
          batch, in, out, x.data(), weight.data(), nullptr, {Activation::identity, 0}, nullptr, y_alone.data()},
      rounding);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t o = 0; o < out; ++o) {
      double sum = 0;
      for (int64_t i = 0; i < in; ++i) sum += x[b * in + i] * weight[o * in + i];
      expect_close(y_alone[b * out + o], sum, in, relative, about<T>("product", batch, in, out));
      expect_close(z[b * out + o], sum + bias[o], in, relative, about<T>("pre-activation", batch, in, out));
      expect_close(y[b * out + o], apply(act, sum + bias[o]), in, relative, about<T>("layer", batch, in, out));
    }
  fastgan::cuda::linear_input_gradient(
      context,
      fastgan::cuda::LinearInputGradient<T>{batch, in, out, grad_z.data(), weight.data(), saved.data(), act,
                                            grad_x.data(), before.data()},
      rounding);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t o = 0; o < out; ++o) sum += grad_z[b * out + o] * weight[o * in + i];
      expect_close(grad_x[b * in + i], sum, out, relative, about<T>("input gradient", batch, in, out));
      expect_close(before[b * in + i], sum * derivative(act, saved[b * in + i], 1), 3.0 * out, relative,
                   about<T>("gradient through the activation before", batch, in, out));
    }
  fastgan::cuda::linear_weight_gradient(context,
                                        fastgan::cuda::LinearWeightGradient<T>{batch, in, out, grad_z.data(), x.data(),
                                                                               grad_weight.data(), grad_bias.data()},
                                        rounding);
  for (int64_t o = 0; o < out; ++o) {
    double bias_sum = 0;
    for (int64_t b = 0; b < batch; ++b) bias_sum += grad_z[b * out + o];
    expect_close(grad_bias[o], bias_sum, batch, relative, about<T>("bias gradient", batch, in, out));
    for (int64_t i = 0; i < in; ++i) {
      double sum = 0;
      for (int64_t b = 0; b < batch; ++b) sum += grad_z[b * out + o] * x[b * in + i];
      expect_close(grad_weight[o * in + i], sum, batch, relative, about<T>("weight gradient", batch, in, out));
    }
  }
}

template <class T>
void check_activations(int64_t rows, int64_t cols, ActivationArguments act) {
  const Context context;
  const int64_t n = rows * cols;
  const std::string what = about<T>("activation", rows, cols, int(act.activation));
  const auto z = random<T>(n), bias = random<T>(cols), saved = random<T>(n, 0.1, 0.9), u = random<T>(n, -1, 1),
             grad = random<T>(n, -1, 1);
  Buffer<T> in_place = z, y(n), copy = z, grad_z(n), grad_bias(cols), grad_grad(n), grad_z2(n);
  fastgan::cuda::bias_act(context, act, rows, cols, copy.data(), bias.data(), y.data());
  fastgan::cuda::bias_act<T>(context, act, rows, cols, in_place.data(), nullptr, in_place.data());
  fastgan::cuda::act_backward(context, act, rows, cols, grad.data(), saved.data(), grad_z.data(), grad_bias.data());
  fastgan::cuda::act_double_backward(context, act, n, u.data(), grad.data(), saved.data(), grad_grad.data(),
                                     grad_z2.data());
  for (int64_t i = 0; i < n; ++i) {
    expect_close(copy[i], z[i] + bias[i % cols], 4, tolerance<T>, what + ", with bias");
    expect_close(y[i], apply(act, z[i] + bias[i % cols]), 4, 2 * tolerance<T>, what);
    expect_close(in_place[i], apply(act, z[i]), 2, 2 * tolerance<T>, what + " in place");
    expect_close(grad_z[i], grad[i] * derivative(act, saved[i], 1), 2, tolerance<T>, what + "'s derivative");
    expect_close(grad_grad[i], u[i] * derivative(act, saved[i], 1), 2, tolerance<T>, what + "'s double backward");
    expect_close(grad_z2[i], u[i] * grad[i] * derivative(act, saved[i], 2), 2, tolerance<T>,
                 what + "'s second derivative");
  }
  for (int64_t col = 0; col < cols; ++col) {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += grad_z[row * cols + col];
    expect_close(grad_bias[col], sum, rows, tolerance<T>, what + "'s column sums");
  }
  fastgan::cuda::act_double_backward<T>(context, act, n, u.data(), grad.data(), saved.data(), grad_grad.data(),
                                        nullptr);
}

// The gradient by the first columns of a weight alone, whose rows are aligned and longer than what is wanted of them.
template <class T>
void check_part_of_input(Rounding rounding) {
  const double relative = rounding == Rounding::none || sizeof(T) != 4 ? tolerance<T> : bf16_error;
  for (const int64_t in : {5, 61, 67}) {
    constexpr int64_t batch = 9, out = 21, stride = 72;
    const Context context;
    const auto grad_z = random<T>(batch * out, -1, 1), weight = random<T>(out * stride, -1, 1);
    Buffer<T> grad_x(batch * in);
    fastgan::cuda::linear_input_gradient(context,
                                         fastgan::cuda::LinearInputGradient<T>{batch,
                                                                               in,
                                                                               out,
                                                                               grad_z.data(),
                                                                               weight.data(),
                                                                               nullptr,
                                                                               {Activation::identity, 0},
                                                                               grad_x.data(),
                                                                               nullptr,
                                                                               stride},
                                         rounding);
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (int64_t o = 0; o < out; ++o) sum += grad_z[b * out + o] * weight[o * stride + i];
        expect_close(grad_x[b * in + i], sum, out, relative,
                     about<T>("gradient by a part of the input", batch, in, out));
      }
  }
}

// k shared out in as many parts as the context says, of which it is told what the product is.
class SplitContext : public Context {
 public:
  SplitContext(int64_t chosen, int cluster) : chosen_(chosen) { largest_cluster = cluster; }
  int64_t splits(const fastgan::cuda::ProductShape& shape) const override {
    asked = shape;
    return chosen_;
  }
  void* scratch(size_t bytes) const override {
    scratch_bytes = bytes;
    return Context::scratch(bytes);
  }
  mutable fastgan::cuda::ProductShape asked{};
  mutable size_t scratch_bytes = 0;

 private:
  int64_t chosen_;
};

// A cluster's sums are in the same order as those of the last block: the same bits.
void check_chosen_splits() {
  using fastgan::cuda::ProductRole;
  constexpr int64_t m = 5, n = 70, k = 520, tiles = 2, tile_bytes = (64 * 72 + 64) * sizeof(float);
  const auto a = random<float>(m * k, -1, 1), b = random<float>(n * k, -1, 1);
  Buffer<float> c(m * n);
  std::map<std::pair<int64_t, ProductRole>, std::vector<float>> of_last_block;
  for (const auto& [chosen, parts, cluster] : {std::array<int64_t, 3>{1, 1, 1},
                                               {3, 3, 1},
                                               {8, 6, 1},
                                               {17, 17, 1},
                                               {1000, 17, 1},
                                               {1, 1, 8},
                                               {3, 3, 8},
                                               {8, 6, 8},
                                               {9, 9, 8},
                                               {17, 17, 8}}) {
    const SplitContext context(chosen, int(cluster));
    const auto check = [&](ProductRole role, auto a_at, auto b_at, const char* what) {
      const std::vector<float> bits(c.data(), c.data() + m * n);
      if (cluster == 1)
        of_last_block[{chosen, role}] = bits;
      else if (const auto found = of_last_block.find({chosen, role}); found != of_last_block.end())
        expect(found->second == bits, std::string(what) + " of a cluster of " + std::to_string(parts));
      expect(context.asked.role == role && context.asked.m == m && context.asked.n == n && context.asked.k == k,
             std::string("the shape of a ") + what);
      expect(context.scratch_bytes == (parts <= cluster ? 0 : tiles * parts * tile_bytes),
             std::string(what) + " in " + std::to_string(parts) + " parts");
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          for (int64_t l = 0; l < k; ++l) sum += a[a_at(i, l)] * b[b_at(l, j)];
          expect_close(c[i * n + j], sum, k, tolerance<float>, what);
        }
    };
    const auto along = [](int64_t row, int64_t l) { return row * k + l; };
    fastgan::cuda::linear_forward(
        context,
        fastgan::cuda::LinearForward<float>{
            m, k, n, a.data(), b.data(), nullptr, {Activation::identity, 0}, nullptr, c.data()},
        Rounding::none);
    check(ProductRole::forward, along, [](int64_t l, int64_t j) { return j * k + l; }, "layer's product");
    fastgan::cuda::linear_input_gradient(
        context,
        fastgan::cuda::LinearInputGradient<float>{
            m, n, k, a.data(), b.data(), nullptr, {Activation::identity, 0}, c.data(), nullptr},
        Rounding::none);
    check(ProductRole::input_gradient, along, [](int64_t l, int64_t j) { return l * n + j; }, "layer's input gradient");
    fastgan::cuda::linear_weight_gradient(
        context, fastgan::cuda::LinearWeightGradient<float>{k, n, m, a.data(), b.data(), c.data(), nullptr},
        Rounding::none);
    check(
        ProductRole::weight_gradient, [](int64_t i, int64_t l) { return l * m + i; },
        [](int64_t l, int64_t j) { return l * n + j; }, "layer's weight gradient");
  }
}

// Sizes of zero, what is passed on as it is, and more tiles than there are counters.
void check_edges() {
  const Context context(1 << 20);  // so many processors that k would be shared out wherever it may be
  const ActivationArguments identity{Activation::identity, 0}, relu{Activation::relu, 0};
  using fastgan::cuda::LinearWeightGradient;
  for (const auto& [batch, in, out] : {std::array<int64_t, 3>{0, 3, 2}, {3, 0, 2}, {3, 2, 0}}) {
    check_products<float>(batch, in, out, relu, Rounding::none, 4, 0);
    check_products<fastgan::bfloat16>(batch, in, out, relu, Rounding::none, 4, 0);
  }
  const int64_t rows = 64 * (Context::counter_count + 1);
  const auto x = random<float>(rows * 1), weight = random<float>(1);
  Buffer<float> y(rows);
  fastgan::cuda::linear_forward(
      context,
      fastgan::cuda::LinearForward<float>{rows, 1, 1, x.data(), weight.data(), nullptr, identity, nullptr, y.data()},
      Rounding::none);
  for (int64_t i = 0; i < rows; i += 999) expect(y[i] == float(x[i] * weight[0]), "a product of many tiles");
  Buffer<float> grad_weight(rows);
  fastgan::cuda::linear_weight_gradient(
      context, LinearWeightGradient<float>{1, 1, rows, x.data(), weight.data(), grad_weight.data(), nullptr},
      Rounding::none);
  for (int64_t i = 0; i < rows; i += 999) expect(grad_weight[i] == float(x[i] * weight[0]), "a weight gradient alone");

  const int64_t cols = 32 * (Context::counter_count + 1);
  Buffer<float> sums(cols), grad = random<float>(cols);
  fastgan::cuda::act_backward<float>(context, identity, 1, cols, grad.data(), grad.data(), nullptr, sums.data());
  for (int64_t i = 0; i < cols; i += 99) expect(sums[i] == grad[i], "the column sums of one row");
  const auto before = grad;
  fastgan::cuda::act_backward<float>(context, identity, 1, cols, grad.data(), grad.data(), grad.data(), nullptr);
  fastgan::cuda::bias_act<float>(context, identity, 1, cols, grad.data(), nullptr, grad.data());
  for (int64_t i = 0; i < cols; i += 99) expect(grad[i] == before[i], "an identity leaves what it is given");
  for (float* none : {static_cast<float*>(nullptr)}) {
    fastgan::cuda::bias_act<float>(context, relu, 0, 3, none, none, none);
    fastgan::cuda::act_backward<float>(context, relu, 3, 0, none, none, none, sums.data());
    fastgan::cuda::act_double_backward<float>(context, relu, 0, none, none, none, none, none);
  }
  fastgan::cuda::act_backward<float>(context, relu, 0, 3, grad.data(), grad.data(), grad.data(), sums.data());
  for (int i = 0; i < 3; ++i) expect(sums[i] == 0, "the column sums of no rows are zero");
  fastgan::cuda::linear_input_gradient(
      context,
      fastgan::cuda::LinearInputGradient<float>{1, 1, 1, x.data(), weight.data(), nullptr, identity, y.data(), nullptr},
      Rounding::none);
  expect(y[0] == float(x[0] * weight[0]), "an input gradient where there is no layer before");
  fastgan::cuda::linear_input_gradient(
      context,
      fastgan::cuda::LinearInputGradient<float>{1, 1, 1, x.data(), weight.data(), weight.data(), identity, nullptr,
                                                y.data()},
      Rounding::none);
  expect(y[0] == float(x[0] * weight[0]), "an input gradient through the layer before alone");
}

}  // namespace

void check_layers() {
  if (!few) check_edges();
  if (!few) check_chosen_splits();
  for_each_type([](auto type) {
    using T = decltype(type);
    if (!few) check_part_of_input<T>(std::is_same_v<T, float> ? Rounding::tf32 : Rounding::none);
    if (!few) check_part_of_input<T>(Rounding::none);
    int activation = 0;
    for (const auto& [batch, in, out] :
         {std::array<int64_t, 3>{1, 1, 1}, {7, 33, 5}, {33, 7, 65}, {70, 129, 3}, {3, 264, 66}}) {
      const ActivationArguments act{Activation(activation++ % fastgan::activation_count), 0.2};
      for (const Rounding rounding : {Rounding::none, Rounding::tf32, Rounding::bf16}) {
        if ((rounding != Rounding::none && !std::is_same_v<T, float>) || (few && in < 264)) continue;
        if (few && rounding == Rounding::bf16) continue;  // check_step has it
        if (!few) check_products<T>(batch, in, out, act, rounding, 4, 0);
        // Many processors: k is shared out, within clusters or without; and not aligned.
        check_products<T>(batch, in, out, act, rounding, 64, 1);
        check_products<T>(batch, in, out, act, rounding, 64, 1, 1);
      }
    }
    for (int a = 0; a < fastgan::activation_count; ++a) {
      if (!few) check_products<T>(2, 3, 5, {Activation(a), 0.2}, a % 2 == 1 ? Rounding::tf32 : Rounding::none, 4, 0);
      if (few && a != 2) continue;
      check_activations<T>(3, 5, {Activation(a), 0.2});
      if (a < 3) check_activations<T>(300, 37, {Activation(a), 0.2});
    }
  });
}

}  // namespace checks
