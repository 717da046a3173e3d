// Two networks, and everything that a step of them takes, for the checks of the whole step.
#pragma once

#include <cmath>
#include <functional>

#include "../../csrc/core/names.h"
#include "../../csrc/cuda/adam.h"
#include "../../csrc/cuda/step.h"
#include "check.h"

namespace checks {

constexpr fastgan::AdamOptions adam_options{0.5, 0.99, 0.1, 1e-8, true, false, true};
constexpr double learning_rate = 0.01, average_rate = 0.01;
constexpr int updates_done = 4;

// A parameter with its state, in memory of exactly its size.
template <class T>
struct Parameter {
  explicit Parameter(int64_t n)
      : value(random<T>(n, -0.5, 0.5)),
        exp_avg(random<T>(n, -0.1, 0.1)),
        exp_avg_sq(random<T>(n, 0.01, 0.1)),
        most(random<T>(n, 0.01, 0.1)),
        average(random<T>(n, -0.5, 0.5)) {}

  static constexpr Buffer<T> Parameter::* parts[] = {&Parameter::value, &Parameter::exp_avg, &Parameter::exp_avg_sq,
                                                     &Parameter::most, &Parameter::average};

  fastgan::AdamParameter<T> adam_parameter(const fastgan::AdamStep<T>* step) {
    return {value.data(), exp_avg.data(), exp_avg_sq.data(), most.data(), average.data(), step};
  }

  Buffer<T> value, exp_avg, exp_avg_sq, most, average;
};

using Numbers = std::vector<double>;  // of a matrix, row by row

template <class T>
Numbers numbers_of(const Buffer<T>& buffer) {
  Numbers all(buffer.size());
  for (int64_t i = 0; i < buffer.size(); ++i) all[i] = buffer[i];
  return all;
}

struct PlainParameter {
  Numbers value, exp_avg, exp_avg_sq, most, average, grad;
  bool is_updated = false, keeps_most = false, averages = false;

  // Adam with decoupled weight decay, by its definition; the gradient is used up.
  void update(double rate_of_average) {
    const fastgan::AdamOptions& o = adam_options;
    for (size_t i = 0; is_updated && i < value.size(); ++i) {
      const double g = grad[i];
      value[i] -= learning_rate * o.weight_decay * value[i];
      exp_avg[i] = o.beta1 * exp_avg[i] + (1 - o.beta1) * g;
      exp_avg_sq[i] = o.beta2 * exp_avg_sq[i] + (1 - o.beta2) * g * g;
      if (keeps_most) most[i] = std::max(most[i], exp_avg_sq[i]);
      const double second = (keeps_most ? most : exp_avg_sq)[i] / (1 - std::pow(o.beta2, updates_done + 1));
      value[i] -= learning_rate * exp_avg[i] / (1 - std::pow(o.beta1, updates_done + 1)) / (std::sqrt(second) + o.eps);
      if (averages) average[i] += rate_of_average * (value[i] - average[i]);
    }
    grad.assign(value.size(), 0);
  }
};

template <class T>
PlainParameter plain_of(const Parameter<T>& parameter) {
  PlainParameter plain;
  plain.value = numbers_of(parameter.value), plain.exp_avg = numbers_of(parameter.exp_avg);
  plain.exp_avg_sq = numbers_of(parameter.exp_avg_sq), plain.most = numbers_of(parameter.most);
  plain.average = numbers_of(parameter.average), plain.grad.assign(parameter.value.size(), 0);
  plain.keeps_most = plain.averages = true;
  return plain;
}

// A device that says which products it prefers to leave to a library, and has one. It counts the questions.
class LibraryContext : public Context {
 public:
  using Prefers = std::function<bool(int64_t m)>;
  explicit LibraryContext(Prefers prefers) : prefers_(std::move(prefers)) {}

  bool prefers_library(const fastgan::cuda::ProductShape& product, size_t) const override {
    ++questions;
    return prefers_(product.m);
  }
  void product(const fastgan::cuda::LibraryProduct<float>& p) const override { multiply(p); }
  void product(const fastgan::cuda::LibraryProduct<double>& p) const override { multiply(p); }

  mutable int questions = 0;

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

  Prefers prefers_;
};

// all_options: AMSGrad and moving averages. frozen_below: the lowest layer and all weights are frozen, and layers do as
// they do in evaluation.
enum class Optimizer { all_options, plain, frozen_below };

// What is due on the device for the parameters of D and of G: for all of a network the same, with one count.
struct Due {
  explicit Due(const Context& context) {
    std::vector<fastgan::cuda::AdamDue> due;
    for (float& count : counts) due.push_back({adam_options, learning_rate, nullptr, &count, nullptr});
    const std::vector<double> done(2, updates_done);
    fastgan::cuda::set_adam(context, due.data(), done.data(), 2, on_device);
  }
  Due(const Due&) = delete;

  template <class T>
  fastgan::cuda::AdamPreparation<T> of(int network, fastgan::AdamStep<T>& step) const {
    return {on_device + network, 1, &step};
  }

  float counts[2] = {0, 0};
  fastgan::cuda::AdamDue on_device[2];
};

template <class T>
struct Training {
  static constexpr int64_t batch = 19, latent = 3, data = 5, hidden = 33, d_hidden = 41;

  // extra: every kind of layer, and the minimax loss.
  explicit Training(bool extra, int64_t classes = 2, Optimizer optimizer = Optimizer::all_options)
      : extra(extra), classes(classes), optimizer(optimizer) {
    using fastgan::Activation;
    using fastgan::LayerKind;
    const fastgan::ActivationArguments identity{Activation::identity, 0}, elu{Activation::elu, 0};
    add(generator, LayerKind::linear, latent + classes, hidden, {extra ? Activation::silu : Activation::relu, 0});
    if (extra) {
      add(generator, LayerKind::batch_norm, hidden, hidden, {Activation::softplus, 0});
      add(generator, LayerKind::dropout, hidden, hidden, identity);
    }
    add(generator, LayerKind::linear, hidden, data, {Activation::tanh, 0});
    if (extra && classes == 0) add(discriminator, LayerKind::identity, data, data, {Activation::silu, 0});
    if (extra) add(discriminator, LayerKind::batch_norm, data + classes, data + classes, identity);
    add(discriminator, LayerKind::linear, data + classes, d_hidden,
        classes == 0 && !extra ? fastgan::ActivationArguments{Activation::gelu, 0}
                               : fastgan::ActivationArguments{Activation::leaky_relu, 0.2});
    if (extra) {
      add(discriminator, LayerKind::batch_norm, d_hidden, d_hidden, elu);
      add(discriminator, LayerKind::dropout, d_hidden, d_hidden, elu);
    }
    add(discriminator, LayerKind::linear, d_hidden, 1, identity);
    for (int64_t i = 0; i < batch; ++i) labels.data()[i] = classes == 0 ? 0 : i % classes;
  }

  void add(std::vector<fastgan::StepLayer<T>>& network, fastgan::LayerKind kind, int64_t in, int64_t out,
           fastgan::ActivationArguments activation) {
    using fastgan::LayerKind;
    const bool in_training = optimizer != Optimizer::frozen_below;
    fastgan::StepLayer<T> layer;
    layer.kind = kind, layer.in = in, layer.out = out, layer.activation = activation;
    if (kind == LayerKind::linear || kind == LayerKind::batch_norm) {
      parameters.push_back(std::make_unique<Parameter<T>>(kind == LayerKind::linear ? in * out : out));
      layer.weight = parameters.back()->adam_parameter(&step);
      parameters.push_back(std::make_unique<Parameter<T>>(out));
      layer.bias = parameters.back()->adam_parameter(&step);
      for (fastgan::AdamParameter<T>* parameter : {&layer.weight, &layer.bias}) {
        if (optimizer == Optimizer::plain) parameter->max_exp_avg_sq = parameter->average = nullptr;
        if (!in_training && (network.empty() || parameter == &layer.weight)) parameter->exp_avg = nullptr;
      }
    }
    if (kind == LayerKind::batch_norm) {
      for (T** statistic : {&layer.running_mean, &layer.running_var}) {
        statistics.push_back(std::make_unique<Buffer<T>>(random<T>(out, 0.5, 1)));
        *statistic = statistics.back()->data();
      }
      layer.batch_statistics = in_training, layer.momentum = 0.1, layer.eps = 1e-5;
      layer.batches = batches.data(), layer.cumulative = optimizer == Optimizer::all_options;
      if (!network.empty() && network.back().kind == LayerKind::linear) network.back().bias_cancels = in_training;
    }
    if (kind == LayerKind::dropout && in_training) {
      for (const T*& mask : layer.mask) {
        masks.push_back(std::make_unique<Buffer<T>>(batch * out));
        for (int64_t i = 0; i < batch * out; ++i) masks.back()->data()[i] = T((i + masks.size()) % 3 > 0);
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
    problem.batch = problem.fake_batch = batch, problem.classes = classes, problem.real_target = 0.9,
    problem.fake_target = 0.1;
    problem.average_rate = average_rate;
    if (extra) problem.loss = *fastgan::gan_loss_named("minimax");
    problem.real = {real.data(), data, data, 1}, problem.noise = {noise.data(), latent, 1, batch};  // columns
    problem.labels = problem.fake_labels = labels.data();
    const size_t bytes = fastgan::cuda::step_workspace(context, problem);
    void* const workspace = context.scratch(bytes);
    Due due(context);
    fastgan::StepSums<T> sums{};
    fastgan::cuda::discriminator_step(context, problem, workspace, &sums, step_options, due.of(0, step));
    expect(due.counts[0] == updates_done + 1 && due.counts[1] == updates_done, "an update of D is counted");
    step = {};
    fastgan::cuda::generator_step(context, problem, workspace, fresh, &sums, step_options, due.of(1, step));
    expect(due.counts[0] == updates_done + 1 && due.counts[1] == updates_done + 1, "an update of G is counted");
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

// Holds whole steps against plain loops, and check_step calls it: check_step_exact.cpp.
void check_step_exact();

}  // namespace checks
