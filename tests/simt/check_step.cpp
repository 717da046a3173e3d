#include <cmath>

#include "../../csrc/cuda/batch_norm.h"
#include "../../csrc/cuda/step_parts.h"
#include "check_training.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::LayerKind;
using fastgan::cuda::Rounding;

template <class T>
void copy_into(const Training<T>& from, Training<T>& to) {
  for (size_t k = 0; k < from.parameters.size(); ++k)
    for (const auto part : Parameter<T>::parts)
      std::copy_n((from.parameters[k].get()->*part).data(), (from.parameters[k].get()->*part).size(),
                  (to.parameters[k].get()->*part).data());
  std::copy_n(from.real.data(), from.real.size(), to.real.data());
  std::copy_n(from.noise.data(), from.noise.size(), to.noise.data());
}

template <class T>
void expect_same(const Training<T>& one, const Training<T>& other, const std::string& what) {
  for (size_t k = 0; k < one.parameters.size(); ++k)
    for (const auto part : Parameter<T>::parts)
      for (int64_t i = 0; i < one.parameters[k]->value.size(); ++i)
        expect_close((one.parameters[k].get()->*part)[i], (other.parameters[k].get()->*part)[i], 1, 20 * tolerance<T>,
                     what + ", parameters");
}

// The same step with a launch a layer, with one a network and with a library's products; and on tensor cores.
template <class T>
void check_paths(int64_t classes, Optimizer optimizer) {
  const auto copy = [&](const Training<T>& from) {
    auto to = std::make_unique<Training<T>>(false, classes, optimizer);
    copy_into(from, *to);
    return to;
  };
  Training<T> one(false, classes, optimizer);
  const auto narrow = copy(one), library = copy(one), rounded = copy(one), half = copy(one);
  const auto a = one.run({Rounding::none, false}, false), b = narrow->run({Rounding::none, true}, false);
  const std::string what = std::string(name_of<T>()) + " step";
  for (const auto part : {&fastgan::StepSums<T>::d_loss, &fastgan::StepSums<T>::g_loss,
                          &fastgan::StepSums<T>::real_score, &fastgan::StepSums<T>::fake_score})
    expect_close(a.*part, b.*part, 1, 20 * tolerance<T>, what + ", statistics");
  expect_same(one, *narrow, what);
  library->run({}, false, LibraryContext([](int64_t m) { return m % 2 == 1; }));
  expect_same(one, *library, what + " with a library");
  if (!std::is_same_v<T, float>) return;
  const auto c = rounded->run({Rounding::tf32, !few}, true);
  expect_close(c.d_loss, a.d_loss, 1, 1e-2, "a step in tf32");
  half->run({Rounding::bf16, true}, true);
}

// Labels that are none: of no class, noted, and the statistics of that step alone are NaN.
template <class T>
void check_odd_labels() {
  for (const auto& [fresh, label] : {std::pair{false, int64_t{3}}, {true, int64_t{-1}}, {true, int64_t{1} << 40}}) {
    Training<T> odd(false, 3);
    odd.labels.data()[4] = odd.labels.data()[7] = label;
    unsigned found = 0;
    int64_t told = 0;
    const fastgan::cuda::StepOptions step_options{Rounding::none, false, {&found, &told}};
    const auto sums = odd.run(step_options, fresh);
    for (const T value : {sums.d_loss, sums.g_loss, sums.real_score, sums.fake_score})
      expect(std::isnan(value), "the statistics of a step with odd labels are NaN");
    expect(found == 0 && told == label, "odd labels are told");
    for (const auto& parameter : odd.parameters)
      for (int64_t i = 0; i < parameter->value.size(); ++i)
        expect(std::isfinite(parameter->value[i]), "odd labels leave the parameters finite");
    odd.labels.data()[4] = 0, odd.labels.data()[7] = 2, told = 0;
    const auto after = odd.run(step_options, fresh);
    for (const T value : {after.d_loss, after.g_loss, after.real_score, after.fake_score})
      expect(std::isfinite(value), "the next step's statistics are finite");
    expect(found == 0 && told == 0, "labels of a class are not told");
  }
}

// Batch normalisation on its own: each part that is normalised has mean 0 and variance 1, and its gradient is
// orthogonal to both.
template <class T>
void check_batch_norm() {
  const Context context;
  constexpr int64_t width = 35;
  fastgan::cuda::BatchNormForward<T> f;
  f.layer.kind = LayerKind::batch_norm, f.layer.in = f.layer.out = width;
  f.layer.batch_statistics = true, f.layer.eps = 0;
  f.parts.add(21), f.parts.add(13);
  const int64_t rows = f.parts.rows();
  const auto x = random<T>(rows * width), grad_z = random<T>(rows * width);
  Buffer<T> y(rows * width), moments(4 * width), grad(rows * width);
  f.x = x.data(), f.moments = moments.data(), f.z = nullptr, f.y = y.data();
  fastgan::cuda::batch_norm_forward(context, f);
  fastgan::cuda::BatchNormBackward<T> b = {};
  b.layer = f.layer, b.parts = f.parts, b.x = x.data(), b.grad_z = grad_z.data();
  b.moments = moments.data(), b.target_width = width, b.saved = nullptr, b.grad = grad.data();
  fastgan::cuda::batch_norm_backward(context, b);
  for (int part = 0; part < 2; ++part)
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0, squares = 0, grads = 0, along = 0;
      for (int64_t r = f.parts.begin[part]; r < f.parts.begin[part + 1]; ++r) {
        const int64_t place = r * width + c;
        sum += y[place], squares += y[place] * y[place], grads += grad[place], along += grad[place] * y[place];
      }
      const double batch = double(f.parts.rows_of(part));
      expect_close(sum, 0, batch, 10 * tolerance<T>, "the mean of what is normalised");
      expect_close(squares, batch, batch, 10 * tolerance<T>, "the variance of what is normalised");
      expect_close(grads, 0, 4 * batch, 10 * tolerance<T>, "the gradient's sum");
      expect_close(along, 0, 4 * batch, 10 * tolerance<T>, "the gradient along what is normalised");
    }
}

template <class T>
void check_loss(int64_t batch) {
  const Context context;
  const auto logits = random<T>(2 * batch, -3, 3);
  Buffer<T> grad(2 * batch), loss(1), first(1), second(1);
  fastgan::cuda::StepLoss<T> a{};
  a.parts.add(batch), a.parts.add(batch);
  a.judged = 2;
  a.logits = a.saved = logits.data();
  a.part[0] = {fastgan::LossTerm::cross_entropy, 0.9}, a.part[1] = {fastgan::LossTerm::cross_entropy, 0.2};
  a.scores_probability = true;
  a.grad_z = grad.data(), a.loss = loss.data(), a.score[0] = first.data(), a.score[1] = second.data();
  fastgan::cuda::step_loss(context, a);
  double total = 0, scores[2] = {};
  for (int64_t i = 0; i < 2 * batch; ++i) {
    const double x = logits[i], t = i < batch ? 0.9 : 0.2, s = 1 / (1 + std::exp(-x));
    total -= (t * std::log(s) + (1 - t) * std::log(1 - s)) / double(batch);
    scores[i < batch ? 0 : 1] += s / double(batch);
    expect_close(grad[i] * double(batch), s - t, 1, 4 * tolerance<T>, "the gradient of a step's loss");
  }
  expect_close(loss[0], total, 4, 4 * tolerance<T>, "a step's loss");
  expect_close(first[0], scores[0], 1, 4 * tolerance<T>, "the score of the first half");
  expect_close(second[0], scores[1], 1, 4 * tolerance<T>, "the score of the second half");
}

}  // namespace

void check_step() {
  check_step_exact();
  check_paths<float>(2, Optimizer::all_options);
  check_batch_norm<float>();
  check_odd_labels<float>();
  check_loss<float>(7);
  if (few) return;
  check_loss<float>(3000);  // several blocks
  check_loss<double>(33);
  check_paths<float>(0, Optimizer::frozen_below);
  check_paths<double>(0, Optimizer::plain);
  check_batch_norm<double>();
  check_odd_labels<double>();
}

}  // namespace checks
