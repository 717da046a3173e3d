#include "../../csrc/cpu/thin_linear.h"
#include "check.h"
#include "layers.h"

namespace checks {

namespace {

using fastgan::ActivationArguments;
using fastgan::cpu::Context;
using fastgan::cpu::ThinMatrix;

template <class T>
Numbers stored(const Numbers& all) {
  Numbers as;
  for (const Bounded& x : all) as.push_back(fastgan::stored<T>(x));
  return as;
}

// The three products of a wide matrix, whose rows are set off from each other, and a thin one.
template <class T>
void check_products(int64_t rows, int64_t cols, int few, ActivationArguments act) {
  const fastgan::Arithmetic<T> arithmetic;
  const std::string about =
      std::to_string(rows) + " x " + std::to_string(cols) + " with " + std::to_string(few) + " thin";
  const int64_t stride = cols + 3;
  const auto x = random<T>(rows * stride), w = random<T>(few * cols), s = random<T>(rows * few);
  const auto thin_bias = random<T>(few), wide_bias = random<T>(cols);
  std::vector<T> dots(rows * few), dots_z(rows * few), outer(rows * cols), sums(few * cols), turned(few * cols);
  fastgan::cpu::thin_dots(Context(), act, rows, cols, few, x.data(), stride, ThinMatrix<T>{w.data(), cols, 1},
                          thin_bias.data(), dots_z.data(), dots.data());
  T* const no_z = nullptr;
  fastgan::cpu::thin_outer(Context(), act, rows, cols, few, s.data(), few, ThinMatrix<T>{w.data(), 1, few},
                           wide_bias.data(), no_z, outer.data());
  fastgan::cpu::thin_sums(Context(), rows, cols, few, s.data(), few, x.data(), stride, false, sums.data());
  fastgan::cpu::thin_sums(Context(), rows, cols, few, s.data(), few, x.data(), stride, true, turned.data());
  const Numbers X = numbers(x), W = numbers(w), S = numbers(s);
  // A 16-bit sum is rounded before the bias is added, and z again before its activation is taken.
  const Numbers z = product(rows, few, cols, X, {stride, 1}, W, {1, cols}, numbers(thin_bias), {0, 1});
  const Numbers wide = product(rows, cols, few, S, {few, 1}, W, {1, few}, numbers(wide_bias), {0, 1});
  expect(dots_z, stored<T>(z), about + ", dots before the activation");
  expect(dots, stored<T>(activated(act, stored<T>(z))), about + ", dots");
  expect(outer, stored<T>(activated(act, stored<T>(wide))), about + ", outer");
  const Numbers by_thin = product(few, cols, rows, S, {1, few}, X, {stride, 1});
  Numbers by_thin_turned(few * cols);
  for (int i = 0; i < few; ++i)
    for (int64_t c = 0; c < cols; ++c) by_thin_turned[c * few + i] = by_thin[i * cols + c];
  expect(sums, stored<T>(by_thin), about + ", sums");
  expect(turned, stored<T>(by_thin_turned), about + ", sums transposed");
}

}  // namespace

void check_thin() {
  using fastgan::Activation;
  for_each_type([](auto type) {
    using T = decltype(type);
    for (int few = 1; few <= fastgan::cpu::most_few; ++few) {
      check_products<T>(13, 3, few, {Activation::leaky_relu, 0.25});
      check_products<T>(70, 67, few, {Activation::tanh, 0});
    }
    check_products<T>(133, 64, 1, {Activation::softplus, 0});
    check_products<T>(300, 131, 3, {Activation::identity, 0});
  });
}

}  // namespace checks
