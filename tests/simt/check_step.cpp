#include <cmath>

#include "../../csrc/cuda/adam.h"
#include "../../csrc/cuda/batch_norm.h"
#include "../../csrc/cuda/step.h"
#include "../../csrc/cuda/step_parts.h"
#include "check.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::ActivationArguments;
using fastgan::LayerKind;
using fastgan::cuda::Rounding;

constexpr fastgan::AdamOptions options{0.5, 0.99, 0.1, 1e-8, true, false, true};

// A parameter with its state, in memory of exactly its size.
template <class T>
struct Parameter {
  explicit Parameter(int64_t n) : value(random<T>(n, -0.5, 0.5)), exp_avg(n), exp_avg_sq(n), most(n), average(value) {}

  fastgan::AdamParameter<T> adam_parameter(const fastgan::AdamStep<T>* step) {
    return {value.data(), exp_avg.data(), exp_avg_sq.data(), most.data(), average.data(), step};
  }

  Buffer<T> value, exp_avg, exp_avg_sq, most, average;
};

// A device with a library of products.
class LibraryContext : public Context {
 public:
  bool prefers_library(int64_t m, int64_t, int64_t, size_t) const override { return m % 2 == 1; }  // some of them
  void product(const fastgan::cuda::LibraryProduct<float>& p) const override { multiply(p); }
  void product(const fastgan::cuda::LibraryProduct<double>& p) const override { multiply(p); }

 private:
  template <class T>
  static void multiply(const fastgan::cuda::LibraryProduct<T>& p) {
    for (int64_t i = 0; i < p.m; ++i)
      for (int64_t j = 0; j < p.n; ++j) {
        double sum = 0;
        for (int64_t l = 0; l < p.k; ++l)
          sum += double(p.a[i * p.a_row + l * p.a_col]) * double(p.b[l * p.b_row + j * p.b_col]);
        p.c[i * p.n + j] = T(sum);
      }
  }
};

enum class Optimizer { all_options, plain, frozen_below };

// Two networks, and everything that a step of them takes.
template <class T>
struct Training {
  static constexpr int64_t batch = 19, latent = 3, data = 5;

  explicit Training(bool extra, int64_t classes = 2, Optimizer optimizer = Optimizer::all_options)
      : extra(extra), classes(classes), optimizer(optimizer) {
    add(generator, LayerKind::linear, latent + classes, 33, {Activation::relu, 0});
    if (extra) {
      add(generator, LayerKind::batch_norm, 33, 33, {Activation::softplus, 0});
      add(generator, LayerKind::dropout, 33, 33, {Activation::identity, 0});
    }
    add(generator, LayerKind::linear, 33, data, {Activation::tanh, 0});
    if (extra) add(discriminator, LayerKind::identity, data + classes, data + classes, {Activation::silu, 0});
    if (extra) add(discriminator, LayerKind::batch_norm, data + classes, data + classes, {Activation::identity, 0});
    add(discriminator, LayerKind::linear, data + classes, 40, {Activation::leaky_relu, 0.2});
    if (extra) add(discriminator, LayerKind::dropout, 40, 40, {Activation::elu, 0});
    add(discriminator, LayerKind::linear, 40, 1, {Activation::identity, 0});
    for (int64_t i = 0; i < batch; ++i) labels.data()[i] = classes == 0 ? 0 : i % classes;
  }

  void add(std::vector<fastgan::StepLayer<T>>& network, LayerKind kind, int64_t in, int64_t out,
           ActivationArguments activation) {
    fastgan::StepLayer<T> layer;
    layer.kind = kind, layer.in = in, layer.out = out, layer.activation = activation;
    if (kind == LayerKind::linear || kind == LayerKind::batch_norm) {
      parameters.push_back(std::make_unique<Parameter<T>>(kind == LayerKind::linear ? in * out : out));
      layer.weight = parameters.back()->adam_parameter(&step);
      parameters.push_back(std::make_unique<Parameter<T>>(out));
      layer.bias = parameters.back()->adam_parameter(&step);
      for (fastgan::AdamParameter<T>* parameter : {&layer.weight, &layer.bias}) {
        if (optimizer == Optimizer::plain) parameter->max_exp_avg_sq = parameter->average = nullptr;
        if (optimizer == Optimizer::frozen_below && (network.empty() || parameter == &layer.weight))
          parameter->exp_avg = nullptr;
      }
    }
    if (kind == LayerKind::batch_norm) {
      for (T** statistic : {&layer.running_mean, &layer.running_var}) {
        statistics.push_back(std::make_unique<Buffer<T>>(random<T>(out, 0.5, 1)));
        *statistic = statistics.back()->data();
      }
      layer.batch_statistics = optimizer != Optimizer::frozen_below, layer.momentum = 0.1, layer.eps = 1e-5;
      layer.batches = batches.data(), layer.cumulative = true;
    }
    if (kind == LayerKind::dropout) {
      for (const T*& mask : layer.mask) {
        masks.push_back(std::make_unique<Buffer<T>>(batch * out));
        for (int64_t i = 0; i < batch * out; ++i) masks.back()->data()[i] = T(i % 3 > 0);
        mask = masks.back()->data();
      }
      layer.keep_scale = 1.5;
    }
    network.push_back(layer);
  }

  // A D step and a G step; returns the statistics.
  fastgan::StepSums<T> run(const fastgan::cuda::StepOptions& step_options, bool fresh,
                           const Context& context = Context()) {
    fastgan::StepProblem<T> problem;
    problem.generator = {int(generator.size()), generator.data()};
    problem.discriminator = {int(discriminator.size()), discriminator.data()};
    problem.batch = batch, problem.classes = classes, problem.real_target = 0.9, problem.fake_target = 0.1;
    problem.average_rate = 0.01;
    problem.minimax = extra;
    problem.real = {real.data(), data, data, 1}, problem.noise = {noise.data(), latent, 1, batch};  // columns
    problem.labels = labels.data();
    const size_t bytes = fastgan::cuda::step_workspace(context, problem);
    void* const workspace = context.scratch(bytes);
    std::vector<float> count(1, 0.0f);
    const fastgan::cuda::AdamDue due{options, 0.01, nullptr, count.data(), nullptr};
    std::vector<fastgan::cuda::AdamDue> on_device(1);
    const double done = 4;
    fastgan::cuda::set_adam(context, &due, &done, 1, on_device.data());
    fastgan::cuda::prepare_adam(context, on_device.data(), 1, &step);
    expect(count[0] == 5, "an update is counted");
    fastgan::StepSums<T> sums{};
    fastgan::cuda::discriminator_step(context, problem, workspace, &sums, step_options);
    fastgan::cuda::generator_step(context, problem, workspace, fresh, &sums, step_options);
    return sums;
  }

  const bool extra;
  const int64_t classes;
  const Optimizer optimizer;
  fastgan::AdamStep<T> step{};
  std::vector<std::unique_ptr<Parameter<T>>> parameters;
  std::vector<std::unique_ptr<Buffer<T>>> statistics, masks;
  Buffer<int64_t> labels{batch}, batches{1};
  Buffer<T> real = random<T>(batch * data, -1, 1), noise = random<T>(batch * latent, -1, 1);
  std::vector<fastgan::StepLayer<T>> generator, discriminator;
};

template <class T>
void copy_into(const Training<T>& from, Training<T>& to) {
  for (size_t k = 0; k < from.parameters.size(); ++k)
    for (const auto part : {&Parameter<T>::value, &Parameter<T>::average})
      std::copy_n((from.parameters[k].get()->*part).data(), (from.parameters[k].get()->*part).size(),
                  (to.parameters[k].get()->*part).data());
  std::copy_n(from.real.data(), from.real.size(), to.real.data());
  std::copy_n(from.noise.data(), from.noise.size(), to.noise.data());
}

template <class T>
void expect_same(const Training<T>& one, const Training<T>& other, const std::string& what) {
  for (size_t k = 0; k < one.parameters.size(); ++k)
    for (const auto part : {&Parameter<T>::value, &Parameter<T>::exp_avg, &Parameter<T>::average})
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
  library->run({}, false, LibraryContext());
  expect_same(one, *library, what + " with a library");
  if (!std::is_same_v<T, float>) return;
  const auto c = rounded->run({Rounding::tf32, !few}, true);
  expect_close(c.d_loss, a.d_loss, 1, 1e-2, "a step in tf32");
  half->run({Rounding::bf16, true}, true);
}

// Every kind of layer; against the definition only what is simple: the first loss and the running statistics.
template <class T>
void check_all_layers() {
  Training<T> all(true);
  const Buffer<T> mean = *all.statistics[0];
  const auto sums = all.run({}, true);
  for (const T value : {sums.d_loss, sums.g_loss, sums.real_score, sums.fake_score})
    expect(std::isfinite(value), "statistics are finite");
  // G's in the D step and in the G step: 2. D's: two halves, then one. All count in the same place here.
  expect(all.batches.data()[0] == 5, "batches are counted");
  bool moved = false;
  for (int64_t i = 0; i < mean.size(); ++i) moved = moved || mean[i] != (*all.statistics[0])[i];
  expect(moved, "running statistics move");
}

// Labels that are none: of no class, noted, and the statistics of that step alone are NaN.
template <class T>
void check_odd_labels() {
  for (const bool fresh : {false, true}) {
    Training<T> odd(false, 3);
    odd.labels.data()[4] = 3, odd.labels.data()[7] = -2;
    unsigned found = 0;
    int64_t told = 0;
    const fastgan::cuda::StepOptions step_options{Rounding::none, false, {&found, &told}};
    const auto sums = odd.run(step_options, fresh);
    for (const T value : {sums.d_loss, sums.g_loss, sums.real_score, sums.fake_score})
      expect(std::isnan(value), "the statistics of a step with odd labels are NaN");
    expect(found == 0 && (told == 3 || told == -2), "odd labels are told");
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

// Batch normalisation on its own: the normalised half has mean 0 and variance 1, and its gradient is orthogonal to
// both.
template <class T>
void check_batch_norm() {
  const Context context;
  constexpr int64_t batch = 21, width = 35;
  fastgan::cuda::BatchNormForward<T> f;
  f.layer.kind = LayerKind::batch_norm, f.layer.in = f.layer.out = width;
  f.layer.batch_statistics = true, f.layer.eps = 0;
  const auto x = random<T>(2 * batch * width), grad_z = random<T>(2 * batch * width);
  Buffer<T> y(2 * batch * width), moments(4 * width), grad(2 * batch * width);
  f.batch = batch, f.halves = 2, f.x = x.data(), f.moments = moments.data(), f.z = nullptr, f.y = y.data();
  fastgan::cuda::batch_norm_forward(context, f);
  fastgan::cuda::BatchNormBackward<T> b = {};
  b.layer = f.layer, b.batch = batch, b.halves = 2, b.x = x.data(), b.grad_z = grad_z.data();
  b.moments = moments.data(), b.target_width = width, b.saved = nullptr, b.grad = grad.data();
  fastgan::cuda::batch_norm_backward(context, b);
  for (int64_t half = 0; half < 2; ++half)
    for (int64_t c = 0; c < width; ++c) {
      double sum = 0, squares = 0, grads = 0, along = 0;
      for (int64_t r = 0; r < batch; ++r) {
        const int64_t place = (half * batch + r) * width + c;
        sum += y[place], squares += y[place] * y[place], grads += grad[place], along += grad[place] * y[place];
      }
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
  fastgan::cuda::step_loss(context, fastgan::cuda::StepLoss<T>{batch,
                                                               2,
                                                               logits.data(),
                                                               logits.data(),
                                                               {Activation::identity, 0},
                                                               {0.9, 0.2},
                                                               1,
                                                               grad.data(),
                                                               loss.data(),
                                                               {first.data(), second.data()}});
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
  check_paths<float>(2, Optimizer::all_options);
  check_all_layers<float>();
  check_batch_norm<float>();
  check_odd_labels<float>();
  check_loss<float>(7);
  if (few) return;
  check_loss<float>(3000);  // several blocks
  check_loss<double>(33);
  check_paths<float>(0, Optimizer::frozen_below);
  check_paths<double>(0, Optimizer::plain);
  check_all_layers<double>();
  for (const Optimizer optimizer : {Optimizer::plain, Optimizer::frozen_below}) {
    Training<float> training(true, 0, optimizer);
    const auto sums = training.run({}, false);
    expect(std::isfinite(sums.d_loss) && std::isfinite(sums.g_loss), "statistics are finite");
    expect((training.batches.data()[0] > 0) == (optimizer == Optimizer::plain), "batches are counted in training");
  }
  check_batch_norm<double>();
  check_odd_labels<double>();
}

}  // namespace checks
