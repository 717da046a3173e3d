#include "../../csrc/cuda/bce.h"
#include "../../csrc/cuda/logits_loss.h"
#include "check.h"

namespace checks {

namespace {

double softplus(double x) { return (x > 0 ? x : 0) + std::log1p(std::exp(-std::fabs(x))); }
double sigma(double x) { return 1 / (1 + std::exp(-x)); }

template <class T>
void check_logits_loss(int64_t n, int offset) {
  using C = fastgan::compute_t<T>;
  const std::string about = std::string(name_of<T>()) + " logits_loss of " + std::to_string(n);
  const Context context;
  const auto real = random<T>(n, -5, 5, offset), fake = random<T>(n / 2 + 1, -5, 5);
  Buffer<C> real_gradient(n, offset), fake_gradient(fake.size());
  const fastgan::LogitsTerm<T> terms[2] = {{n, real.data(), 0.9, 1.0, 0.5, real_gradient.data()},
                                           {fake.size(), fake.data(), 0.0, -1.0, 0.25, fake_gradient.data()}};
  Buffer<T> loss(1), losses(n, offset), back(n, offset);
  fastgan::cuda::logits_loss_sum(context, terms, 2, loss.data());
  double exact = 0, scale = 0;
  for (int64_t i = 0; i < n; ++i) exact += 0.5 * (0.1 * real[i] + softplus(-real[i]));
  for (int64_t i = 0; i < fake.size(); ++i) exact -= 0.25 * softplus(fake[i]);
  for (int64_t i = 0; i < n; ++i) scale += softplus(-real[i]);
  expect_close(loss[0], exact, scale, tolerance<T>, about + " summed");
  fastgan::cuda::logits_loss_elementwise(context, terms[0], losses.data());
  const auto grad_output = random<T>(n, -1, 1, offset);
  for (const int stride : {0, 1}) {
    fastgan::cuda::logits_loss_backward(context, n, real_gradient.data(), grad_output.data(), stride, 2.0, back.data());
    for (int64_t i = 0; i < n; ++i) {
      expect_close(losses[i], 0.1 * real[i] + softplus(-real[i]), 5, tolerance<T>, about + " of one");
      expect_close(real_gradient[i], sigma(real[i]) - 0.9, 1, tolerance<C>, about + "'s gradient");
      expect_close(back[i], 2 * (sigma(real[i]) - 0.9) * grad_output[stride * i], 2, tolerance<T>, about + " backward");
    }
  }
  for (int64_t i = 0; i < fake.size(); ++i)
    expect_close(fake_gradient[i], -sigma(fake[i]), 1, tolerance<C>, about + "'s gradient by the fakes");
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
  const fastgan::LogitsTerm<double> term{n, x.data(), 0.0, 1.0, 1.0, nullptr};
  double loss = 0, exact = 0;
  fastgan::cuda::logits_loss_sum(context, &term, 1, &loss);
  for (int64_t i = 0; i < n; ++i) exact += softplus(x[i]);
  expect_close(loss, exact, exact, tolerance<double>, "a sum over many blocks");
}

}  // namespace

void check_losses() {
  for_each_type([](auto type) {
    using T = decltype(type);
    for (const int64_t n : {0, 1, 7, 33, 1025, 5000, 9000}) {
      if (few && n != 5000) continue;
      check_logits_loss<T>(n, 1);
      if (few) {
        check_bce<T>(n, n, 3, 0);
        continue;
      }
      check_logits_loss<T>(n, 0);
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
    fastgan::cuda::logits_loss_sum(context, many.data(), int(many.size()), &loss);
  } catch (const std::runtime_error&) {
    refused = true;
  }
  expect(refused, "more terms than fit are refused");
  const float logit = 0;
  for (auto& term : many) term = {1, &logit, 0.0, 1.0, 1.0, nullptr};
  fastgan::cuda::logits_loss_sum(context, many.data(), fastgan::cuda::max_logits_terms, &loss);
  expect_close(loss, fastgan::cuda::max_logits_terms * std::log(2.0), 1, tolerance<float>, "as many terms as fit");
}

}  // namespace checks
