#include "../../csrc/cpu/bce.h"
#include "../../csrc/cpu/logits_loss.h"
#include "check.h"
#include "layers.h"

namespace checks {

namespace {

using fastgan::compute_t;
using fastgan::LossTerm;
using fastgan::cpu::Context;

// `weighted`: with weights and positive weights that are broadcast over rows of 7.
template <class T>
void check_bce(int64_t n, bool weighted) {
  const fastgan::Arithmetic<T> arithmetic;
  const std::string about = "bce of " + std::to_string(n) + (weighted ? " weighted" : "");
  const auto x = random<T>(n, -6, 6), t = random<T>(n, 0, 1), w = random<T>(n, 0.5, 2), p = random<T>(7, 0.5, 2);
  const auto g = random<T>(n);
  fastgan::BceArguments<T> arguments{n, x.data(), t.data(), {nullptr, 1}, {nullptr, 1}};
  if (weighted) arguments.weight = {w.data(), n}, arguments.pos_weight = {p.data(), 7};
  const double scale = 0.75;
  std::vector<T> losses(n), loss(1), by_input(n), by_target(n), from_one(n);
  fastgan::cpu::bce_elementwise(Context(), arguments, losses.data());
  fastgan::cpu::bce_sum(Context(), arguments, scale, loss.data());
  T* const none = nullptr;
  fastgan::cpu::bce_backward(Context(), arguments, g.data(), 1, scale, by_input.data(), by_target.data());
  fastgan::cpu::bce_backward(Context(), arguments, g.data(), 0, scale, from_one.data(), none);
  const Numbers X = numbers(x), Y = numbers(t), W = numbers(w), P = numbers(p), G = numbers(g);
  Numbers each(n), input(n), target(n), one(n);
  Sum sum;
  for (int64_t i = 0; i < n; ++i) {
    const Bounded weight = weighted ? W[i] : Bounded(1), positive = weighted ? P[i % 7] : Bounded(1);
    const Bounded value = fastgan::bce_loss(X[i], Y[i], weight, positive);
    sum.add(value);
    each[i] = fastgan::stored<T>(value);
    const Bounded with = weight * (G[i] * Bounded(scale)), with_one = weight * (G[0] * Bounded(scale));
    input[i] = fastgan::stored<T>(fastgan::bce_input_gradient(X[i], Y[i], with, positive));
    target[i] = fastgan::stored<T>(fastgan::bce_target_gradient(X[i], with, positive));
    one[i] = fastgan::stored<T>(fastgan::bce_input_gradient(X[i], Y[i], with_one, positive));
  }
  expect(losses, each, about);
  expect(loss, {fastgan::stored<T>(sum.total() * Bounded(scale))}, about + " summed");
  expect(by_input, input, about + " by the input");
  expect(by_target, target, about + " by the target");
  expect(from_one, one, about + " from one gradient");
}

// Two batches, or one of differences.
template <class T>
void check_term(LossTerm term, int64_t n, double target, bool paired) {
  using C = compute_t<T>;
  const fastgan::Arithmetic<T> arithmetic;
  const std::string about = std::string(fastgan::loss_term_names[int(term)]) + (paired ? " of pairs" : "");
  const int64_t second = paired ? n : n / 2 + 1;
  const int count = paired ? 1 : 2;
  std::vector<T> logits[] = {random<T>(n, -1.5, 3.1), random<T>(second, -3.1, 1.5)};
  for (std::vector<T>& batch : logits)
    for (T& logit : batch)  // not at the hinge's kink
      if (std::fabs(fastgan::load(&logit) - target) < 0.01) fastgan::store(&logit, C(0.5));
  const std::vector<T> tangents[] = {random<T>(n, 0.5, 2), random<T>(second, 0, 0.5)};  // so that sums do not cancel
  const auto g = random<T>(n);
  std::vector<C> gradient[] = {std::vector<C>(n), std::vector<C>(second)};
  std::vector<T> outs[] = {std::vector<T>(n), std::vector<T>(second)};
  fastgan::LogitsTerm<T> batches[2];
  fastgan::LogitsTangent<T> tangent[2];
  for (int k = 0; k < count; ++k) {
    const int64_t length = k == 0 ? n : second;
    const double sign = k == 0 ? 1 : -1, scale = (k == 0 ? 1 : 0.25) / double(length);
    batches[k] = {length, logits[k].data(),  paired ? logits[1].data() : nullptr, target, sign,
                  scale,  gradient[k].data()};
    tangent[k] = {length,
                  logits[k].data(),
                  batches[k].minus,
                  tangents[k].data(),
                  paired ? tangents[1].data() : nullptr,
                  target,
                  sign,
                  scale,
                  outs[k].data(),
                  paired ? outs[1].data() : nullptr};
  }
  std::vector<T> loss(1), losses(n), by_output(1), backward(n), backward_minus(n);
  fastgan::cpu::logits_loss_sum(Context(), term, batches, count, loss.data());
  fastgan::cpu::logits_loss_double_backward(Context(), term, tangent, count, g.data(), 0, by_output.data());
  fastgan::cpu::logits_loss_backward(Context(), term, n, gradient[0].data(), g.data(), 1, 0.5, backward.data(),
                                     paired ? backward_minus.data() : nullptr);
  Bounded total = 0, total_by_output = 0;
  const Numbers G = numbers(g);
  for (int k = 0; k < count; ++k) {
    const Numbers X = numbers(logits[k]), M = numbers(logits[1]), V = numbers(tangents[k]), U = numbers(tangents[1]);
    Numbers first(X.size()), bent(X.size()), minus(X.size()), each(X.size()), scaled(X.size()), negative(X.size());
    Sum sum, sum_by_output;
    const Bounded sign = batches[k].sign, factor = Bounded(batches[k].sign) * Bounded(batches[k].scale);
    for (size_t i = 0; i < X.size(); ++i) {
      const Bounded x = paired ? X[i] - M[i] : X[i], v = paired ? V[i] - U[i] : V[i];
      fastgan::with_loss_term(term, [&](auto of) {
        const auto at = loss_at(of, x, target);
        first[i] = sign * at.gradient;
        each[i] = fastgan::stored<T>(sign * at.loss);
        sum.add(at.loss);
        const fastgan::Continuous continuous;
        const Bounded bend = continuous(of.second(x, Bounded(target)), 1, x);
        const Bounded curved = fastgan::is_bent(of) ? v * (G[0] * factor) * bend : 0;
        bent[i] = fastgan::stored<T>(curved), minus[i] = fastgan::stored<T>(-curved);
        sum_by_output.add(fastgan::scaled_gradient(of, at.gradient, v));
        // Of the kernel's own gradient, which it was given.
        scaled[i] = fastgan::scaled_gradient(of, Bounded(double(gradient[k][i]), 0), G[k == 0 ? i : 0] * Bounded(0.5));
      });
      negative[i] = fastgan::stored<T>(-scaled[i]), scaled[i] = fastgan::stored<T>(scaled[i]);
    }
    total = total + factor * sum.total();
    total_by_output = total_by_output + factor * sum_by_output.total();
    expect(gradient[k], first, about + " gradient");
    const bool is_bent = term == LossTerm::cross_entropy || term == LossTerm::square;
    if (is_bent) expect(outs[k], bent, about + " second derivative");
    if (is_bent && paired) expect(outs[1], minus, about + " second derivative of what is subtracted");
    if (k > 0) continue;
    fastgan::cpu::logits_loss_elementwise(Context(), term, batches[0], losses.data());
    expect(losses, each, about + " each");
    expect(backward, scaled, about + " backward");
    if (paired) expect(backward_minus, negative, about + " backward of what is subtracted");
  }
  expect(loss, {fastgan::stored<T>(total)}, about + " summed");
  expect(by_output, {fastgan::stored<T>(total_by_output)}, about + " by the gradient of its sum");
}

}  // namespace

void check_losses() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (const int64_t n : {1, 35, 5005}) check_bce<T>(n, false), check_bce<T>(n, true);
    for (const int64_t n : {1, 37, 4500}) {
      check_term<T>(LossTerm::cross_entropy, n, 0.9, false), check_term<T>(LossTerm::cross_entropy, n, 1, true);
      check_term<T>(LossTerm::hinge, n, 1, false), check_term<T>(LossTerm::linear, n, -1, false);
      check_term<T>(LossTerm::square, n, 1, false);
    }
  });
}

}  // namespace checks
