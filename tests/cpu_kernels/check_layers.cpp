#include "../../csrc/cpu/linear.h"
#include "check.h"
#include "layers.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::ActivationArguments;
using fastgan::cpu::Context;

// What is around a product: forward with the bias, backward with the bias's gradient, and the derivative of backward.
template <class T>
void check_activation(ActivationArguments act, int64_t rows, int64_t cols) {
  const fastgan::Arithmetic<T> arithmetic;
  const std::string about = std::string(fastgan::activation_names[int(act.activation)]) + " of " +
                            std::to_string(rows) + " x " + std::to_string(cols);
  const int64_t n = rows * cols;
  const auto x = random<T>(n, -3, 3), bias = random<T>(cols), g = random<T>(n), u = random<T>(n);
  auto z = x;
  std::vector<T> y(n), in_place = x, grad_z(n), grad_bias(cols), by_grad_y(n), by_z(n);
  fastgan::cpu::bias_act(Context(), act, rows, cols, z.data(), bias.data(), y.data());
  const Numbers X = numbers(x), B = numbers(bias);
  Numbers wanted_z(n), wanted_y(n), without_bias(n);
  for (int64_t i = 0; i < n; ++i) {
    const Bounded value = X[i] + B[i % cols];
    wanted_z[i] = fastgan::stored<T>(value);
    wanted_y[i] = fastgan::stored<T>(activated(act, value));
    without_bias[i] = fastgan::stored<T>(activated(act, X[i]));
  }
  expect(z, wanted_z, about + ", z");
  expect(y, wanted_y, about + ", y");
  const T* const none = nullptr;
  fastgan::cpu::bias_act(Context(), act, rows, cols, in_place.data(), none, in_place.data());
  expect(in_place, without_bias, about + ", in place");
  in_place = x;
  fastgan::cpu::bias_act(Context(), act, rows, cols, in_place.data(), bias.data(), in_place.data());
  expect(in_place, wanted_y, about + ", in place with the bias");
  // Of the kernel's own results, which it is given.
  const std::vector<T>& saved = saves_output(act) ? y : z;
  T* const not_wanted = nullptr;
  const bool is_curved = !is_piecewise_linear(act.activation);
  fastgan::cpu::act_backward(Context(), act, rows, cols, g.data(), saved.data(), grad_z.data(), grad_bias.data());
  fastgan::cpu::act_double_backward(Context(), act, n, u.data(), g.data(), saved.data(), by_grad_y.data(),
                                    is_curved ? by_z.data() : not_wanted);
  const Numbers S = numbers(saved), G = numbers(g), U = numbers(u);
  Numbers wanted(n), wanted_by_grad_y(n), wanted_by_z(n), sums(cols);
  std::vector<Sum> totals(cols);
  for (int64_t i = 0; i < n; ++i) {
    const Bounded value = gradient(act, G[i], S[i]);
    totals[i % cols].add(value);
    wanted[i] = fastgan::stored<T>(value);
    wanted_by_grad_y[i] = fastgan::stored<T>(gradient(act, U[i], S[i]));
    wanted_by_z[i] = fastgan::stored<T>(U[i] * G[i] * second(act, S[i]));
  }
  // Few columns of a 16-bit type are summed up as they were stored.
  if (sizeof(T) == 2 && cols <= 8) {
    totals.assign(cols, Sum());
    for (int64_t i = 0; i < n; ++i) totals[i % cols].add(wanted[i]);
  }
  for (int64_t c = 0; c < cols; ++c) sums[c] = fastgan::stored<T>(totals[c].total());
  expect(grad_z, wanted, about + ", backward");
  expect(grad_bias, sums, about + ", by the bias");
  expect(by_grad_y, wanted_by_grad_y, about + ", backward of backward");
  if (is_curved) expect(by_z, wanted_by_z, about + ", curvature");
  auto g_in_place = g, u_in_place = u;
  fastgan::cpu::act_backward(Context(), act, rows, cols, g_in_place.data(), saved.data(), g_in_place.data(),
                             grad_bias.data());
  expect(g_in_place, wanted, about + ", backward in place");
  expect(grad_bias, sums, about + ", by the bias in place");
  fastgan::cpu::act_double_backward(Context(), act, n, u_in_place.data(), g.data(), saved.data(), u_in_place.data(),
                                    is_curved ? by_z.data() : not_wanted);
  expect(u_in_place, wanted_by_grad_y, about + ", backward of backward in place");
}

}  // namespace

void check_layers() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (int a = 0; a < fastgan::activation_count; ++a) {
      const ActivationArguments act{Activation(a), 0.25};
      check_activation<T>(act, 37, 5);
      check_activation<T>(act, 70, 67);
    }
    check_activation<T>({Activation::leaky_relu, -0.5}, 9, 33);  // saves z
    check_activation<T>({Activation::silu, 0}, 300, 5);          // a block of several strips
    check_activation<T>({Activation::softplus, 0}, 19, 1100);    // columns of several strips
  });
}

}  // namespace checks
