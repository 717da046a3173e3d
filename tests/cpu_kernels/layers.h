// Layers as plain loops over bounded numbers. Matrices lie row by row.
#pragma once

#include "../../csrc/core/activation.h"
#include "../../csrc/core/logits_loss.h"
#include "check.h"

namespace checks {

inline Bounded activated(fastgan::ActivationArguments act, Bounded z) {
  const fastgan::Continuous continuous;
  Bounded y;
  fastgan::with_activation(act.activation, [&](auto a) { y = decltype(a)::value(z, Bounded(act.negative_slope)); });
  return continuous(y, 2, z);
}
// The gradient by z of a gradient by y. Curved activations have continuous derivatives, with slopes of at most 2.
inline Bounded gradient(fastgan::ActivationArguments act, Bounded g, Bounded saved) {
  Bounded to;
  fastgan::with_activation(act.activation, [&](auto a) {
    using A = decltype(a);
    const Bounded slope = act.negative_slope;
    if constexpr (A::is_piecewise_linear) {
      to = fastgan::gradient<A>(g, saved, slope);
    } else {
      const fastgan::Continuous continuous;
      to = g * continuous(A::d(saved, slope), 2, saved);
    }
  });
  return to;
}
inline Bounded second(fastgan::ActivationArguments act, Bounded saved) {
  Bounded dd;
  fastgan::with_activation(act.activation, [&](auto a) { dd = decltype(a)::dd(saved, Bounded(act.negative_slope)); });
  return dd;
}

// Where a matrix's element (row, column) lies.
struct Strides {
  int64_t row, column;
};

// rows x cols: the sums over `inner` of a(row, k) b(k, col), and of start(row, col) where that is not empty.
inline Numbers product(int64_t rows, int64_t cols, int64_t inner, const Numbers& a, Strides of_a, const Numbers& b,
                       Strides of_b, const Numbers& start = {}, Strides of_start = {0, 0}) {
  Numbers out(rows * cols);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      Sum sum;
      if (!start.empty()) sum.add(start[r * of_start.row + c * of_start.column]);
      for (int64_t k = 0; k < inner; ++k)
        sum.add(a[r * of_a.row + k * of_a.column] * b[k * of_b.row + c * of_b.column]);
      out[r * cols + c] = sum.total();
    }
  return out;
}

// x W^T + bias, W being (out, in); x W; and g^T x, (out, in).
inline Numbers linear(int64_t batch, int64_t in, int64_t out, const Numbers& x, const Numbers& weight,
                      const Numbers& bias) {
  return product(batch, out, in, x, {in, 1}, weight, {1, in}, bias, {0, 1});
}
inline Numbers by_input(int64_t batch, int64_t in, int64_t out, const Numbers& g, const Numbers& weight) {
  return product(batch, in, out, g, {out, 1}, weight, {in, 1});
}
inline Numbers by_weight(int64_t batch, int64_t in, int64_t out, const Numbers& g, const Numbers& x,
                         const Numbers& onto = {}) {
  return product(out, in, batch, g, {1, out}, x, {in, 1}, onto, {in, 1});
}
inline Numbers by_bias(int64_t batch, int64_t out, const Numbers& g) {
  return product(1, out, batch, Numbers(batch, {1, 0}), {0, 1}, g, {out, 1});
}

inline Numbers activated(fastgan::ActivationArguments act, const Numbers& z) {
  Numbers y;
  for (const Bounded& value : z) y.push_back(activated(act, value));
  return y;
}
inline Numbers gradient(fastgan::ActivationArguments act, const Numbers& g, const Numbers& saved) {
  Numbers to(g.size());
  for (size_t i = 0; i < g.size(); ++i) to[i] = gradient(act, g[i], saved[i]);
  return to;
}

// A loss's term and its derivative, which jumps for the hinge alone; the others' have slopes of at most 1.
template <class Term>
fastgan::LossAndGradient<Bounded> loss_at(Term term, Bounded x, double target) {
  if constexpr (std::is_same_v<Term, fastgan::LossOf<fastgan::LossTerm::hinge>>) return term.at(x, Bounded(target));
  const fastgan::Continuous continuous;
  const fastgan::LossAndGradient<Bounded> at = term.at(x, Bounded(target));
  return {continuous(at.loss, 1, x), continuous(at.gradient, 1, x)};
}

}  // namespace checks
