#include "../../csrc/cuda/bce.h"
#include "../../csrc/cuda/logits_loss.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::LossTerm;

double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }
double sigma(double x) { return 1 / (1 + std::exp(-x)); }

// A term by its formula: value, first and second derivative.
struct Derivatives {
  double value, first, second;
};
Derivatives derivatives_of(LossTerm term, double x, double t) {
  switch (term) {
    case LossTerm::cross_entropy:
      return {(1 - t) * x + softplus(-x), sigma(x) - t, sigma(x) * sigma(-x)};
    case LossTerm::hinge:
      return {std::max(0.0, 1 - t * x), t * x < 1 ? -t : 0, 0};
    case LossTerm::linear:
      return {-t * x, -t, 0};
    case LossTerm::square:
      return {(x - t) * (x - t) / 2, x - t, 1};
  }
  return {};
}

// Two batches of different sizes against targets of their own, or a pair of equal ones against one.
template <class T>
void check_logits_loss(LossTerm term, bool is_paired, int64_t n, int offset) {
  using C = fastgan::compute_t<T>;
  const std::string about = std::string(name_of<T>()) + " " + fastgan::loss_term_names[static_cast<int>(term)] +
                            (is_paired ? " of pairs" : "") + " of " + std::to_string(n);
  const Context context;
  const double most = 40;  // of a value, for logits up to 5 and differences up to 10
  const auto real = random<T>(n, -5, 5, offset), fake = random<T>(is_paired ? n : n / 2 + 1, -5, 5);
  const auto tangents = random<T>(n, -1, 1), tangents_of_fake = random<T>(fake.size(), -1, 1, offset);
  const int64_t sizes[2] = {n, fake.size()};
  const double targets[2] = {0.9, -0.8}, signs[2] = {1, is_paired ? 1.0 : -1.0}, scales[2] = {0.5, 0.25};
  const int count = is_paired ? 1 : 2;
  const auto derivatives = [&](int batch, int64_t i) {
    const double x = is_paired ? double(real[i]) - fake[i] : batch == 0 ? real[i] : fake[i];
    return derivatives_of(term, x, targets[batch]);
  };
  const auto tangent = [&](int batch, int64_t i) -> double {
    return is_paired ? double(tangents[i]) - tangents_of_fake[i] : batch == 0 ? tangents[i] : tangents_of_fake[i];
  };

  Buffer<C> gradients[2] = {Buffer<C>(n, offset), Buffer<C>(fake.size())};
  const T* const minus = is_paired ? fake.data() : nullptr;
  const fastgan::LogitsTerm<T> batches[2] = {
      {n, real.data(), minus, targets[0], signs[0], scales[0], gradients[0].data()},
      {fake.size(), fake.data(), nullptr, targets[1], signs[1], scales[1], gradients[1].data()}};
  Buffer<T> loss(1), losses(n, offset), back(n, offset), back_of_minus(n);
  fastgan::cuda::logits_loss_sum(context, term, batches, count, loss.data());
  double exact = 0, scale = 0;
  for (int k = 0; k < count; ++k) {
    for (int64_t i = 0; i < sizes[k]; ++i) {
      const Derivatives of = derivatives(k, i);
      exact += scales[k] * signs[k] * of.value;
      scale += std::fabs(of.value);
      expect_close(gradients[k][i], signs[k] * of.first, 10, tolerance<C>, about + "'s gradient");
    }
  }
  expect_close(loss[0], exact, scale, tolerance<T>, about + " summed");
  fastgan::cuda::logits_loss_elementwise(context, term, batches[0], losses.data());
  for (int64_t i = 0; i < n; ++i)
    expect_close(losses[i], derivatives(0, i).value, most, tolerance<T>, about + " of one");

  const auto grad_output = random<T>(n + 1, -1, 1, offset);
  Buffer<T> second[2] = {Buffer<T>(n, offset), Buffer<T>(fake.size())}, by_grad_output(n + 1, offset);
  const fastgan::LogitsTangent<T> curved[2] = {
      {n, real.data(), minus, tangents.data(), is_paired ? tangents_of_fake.data() : nullptr, targets[0], signs[0],
       scales[0], second[0].data(), is_paired ? second[1].data() : nullptr},
      {fake.size(), fake.data(), nullptr, tangents_of_fake.data(), nullptr, targets[1], signs[1], scales[1],
       second[1].data(), nullptr}};
  for (const int stride : {0, 1}) {
    fastgan::cuda::logits_loss_backward(context, term, n, gradients[0].data(), grad_output.data(), stride, 2.0,
                                        back.data(), is_paired ? back_of_minus.data() : nullptr);
    for (int64_t i = 0; i < n; ++i) {
      const double g = 2 * derivatives(0, i).first * grad_output[stride * i];
      expect_close(back[i], g, 20, tolerance<T>, about + " backward");
      if (is_paired) expect_close(back_of_minus[i], -g, 20, tolerance<T>, about + " backward by what is subtracted");
    }
    const int batches_there = stride == 0 ? count : 1;
    fastgan::cuda::logits_loss_double_backward(context, term, curved, batches_there, grad_output.data(), stride,
                                               by_grad_output.data());
    double sum = 0, size = 0;
    for (int k = 0; k < batches_there; ++k) {
      for (int64_t i = 0; i < sizes[k]; ++i) {
        const Derivatives of = derivatives(k, i);
        const double factor = signs[k] * scales[k];
        const double bent = tangent(k, i) * grad_output[stride * i] * factor * of.second;
        sum += factor * tangent(k, i) * of.first;
        size += std::fabs(tangent(k, i) * of.first);
        expect_close(second[k][i], bent, 2, tolerance<T>, about + "'s second derivative");
        if (is_paired) expect_close(second[1][i], -bent, 2, tolerance<T>, about + "'s other second derivative");
        if (stride == 1)
          expect_close(by_grad_output[i], factor * tangent(k, i) * of.first, 10, tolerance<T>,
                       about + " by its gradient, each");
      }
    }
    if (stride == 0) expect_close(by_grad_output[0], sum, size, tolerance<T>, about + " by its gradient");
  }
}

template <class T>
void check_bce(int64_t n, int64_t weight_period, int64_t pos_period, int offset) {
  const std::string about = std::string(name_of<T>()) + " bce of " + std::to_string(n);
  const Context context;
  const auto x = random<T>(n, -5, 5, offset), t = random<T>(n, 0, 1);
  const auto w = random<T>(std::max<int64_t>(1, weight_period), 0, 2),
             p = random<T>(std::max<int64_t>(1, pos_period), 0, 2);
  const fastgan::BceArguments<T> a{n,
                                   x.data(),
                                   t.data(),
                                   {weight_period == 0 ? nullptr : w.data(), w.size()},
                                   {pos_period == 0 ? nullptr : p.data(), p.size()}};
  Buffer<T> loss(1), losses(n), grad_input(n), grad_target(n, offset);
  const auto grad_output = random<T>(n, -1, 1);
  fastgan::cuda::bce_sum(context, a, 0.5, loss.data());
  fastgan::cuda::bce_elementwise(context, a, losses.data());
  for (const int stride : {0, 1}) {
    fastgan::cuda::bce_backward(context, a, grad_output.data(), stride, 2.0, grad_input.data(), grad_target.data());
    double sum = 0, scale = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double weight = weight_period == 0 ? 1 : w[i % w.size()], positive = pos_period == 0 ? 1 : p[i % p.size()];
      const double exact = weight * ((1 - t[i]) * x[i] + (1 + (positive - 1) * t[i]) * softplus(-x[i]));
      const double g = 2 * grad_output[stride * i] * weight;
      sum += 0.5 * exact;
      scale += std::fabs(exact);
      expect_close(losses[i], exact, 20, tolerance<T>, about + " of one");
      expect_close(grad_input[i], g * ((1 - t[i]) * sigma(x[i]) - positive * t[i] * sigma(-x[i])), 8, tolerance<T>,
                   about + "'s gradient by the input");
      expect_close(grad_target[i], g * ((positive - 1) * softplus(-x[i]) - x[i]), 40, tolerance<T>,
                   about + "'s gradient by the target");
    }
    expect_close(loss[0], sum, scale, tolerance<T>, about + " summed");
  }
  fastgan::cuda::bce_backward<T>(context, a, grad_output.data(), 0, 1.0, nullptr, grad_target.data());
  fastgan::cuda::bce_backward<T>(context, a, grad_output.data(), 0, 1.0, grad_input.data(), nullptr);
}

// More blocks than the last of them has threads.
void check_many_blocks() {
  const Context context(128);
  const int64_t n = 300 * 256 * 4;
  const auto x = random<double>(n, -5, 5);
  const fastgan::LogitsTerm<double> batch{n, x.data(), nullptr, 0.0, 1.0, 1.0, nullptr};
  double loss = 0, exact = 0;
  fastgan::cuda::logits_loss_sum(context, LossTerm::cross_entropy, &batch, 1, &loss);
  for (int64_t i = 0; i < n; ++i) exact += softplus(x[i]);
  expect_close(loss, exact, exact, tolerance<double>, "a sum over many blocks");
}

}  // namespace

void check_losses() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (const int64_t n : {0, 1, 7, 33, 1025, 5000, 9000}) {
      if (few && n != 5000) continue;
      for (const LossTerm term : {LossTerm::cross_entropy, LossTerm::hinge, LossTerm::linear, LossTerm::square})
        check_logits_loss<T>(term, false, n, 1);
      check_logits_loss<T>(LossTerm::cross_entropy, true, n, 1);
      if (few) {
        check_bce<T>(n, n, 3, 0);
        continue;
      }
      check_logits_loss<T>(LossTerm::cross_entropy, false, n, 0);
      check_logits_loss<T>(LossTerm::cross_entropy, true, n, 0);
      check_bce<T>(n, 0, 0, 0);
      check_bce<T>(n, n, 1, 1);
      check_bce<T>(n, 3, n, 0);
      check_bce<T>(n, 2, 2, 0);
    }
  });
  if (!few) check_many_blocks();
  const Context context;
  std::vector<fastgan::LogitsTerm<float>> many(fastgan::cuda::max_logits_terms + 1);
  float loss = 0;
  bool refused = false;
  try {
    fastgan::cuda::logits_loss_sum(context, LossTerm::linear, many.data(), int(many.size()), &loss);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  expect(refused, "more terms than fit are refused");
  const float logit = 0;
  for (auto& batch : many) batch = {1, &logit, nullptr, 0.0, 1.0, 1.0, nullptr};
  fastgan::cuda::logits_loss_sum(context, LossTerm::cross_entropy, many.data(), fastgan::cuda::max_logits_terms, &loss);
  expect_close(loss, fastgan::cuda::max_logits_terms * std::log(2.0), 1, tolerance<float>, "as many terms as fit");
}

}  // namespace checks
