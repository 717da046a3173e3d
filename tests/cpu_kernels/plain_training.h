// Two networks with everything that a step of them takes; and a D step and a G step of them as plain loops over bounded
// numbers, with Adam.
#pragma once

#include <deque>

#include "../../csrc/core/names.h"
#include "../../csrc/cpu/step.h"
#include "check.h"
#include "layers.h"

namespace checks {

struct TrainingShape {
  int64_t batch = 35, latent = 3, data = 11, hidden = 40, d_width = 37;
  fastgan::ActivationArguments d_hidden{fastgan::Activation::leaky_relu, 0.25};
  bool normalised = false;  // batch_norm in G, dropout in both
  bool amsgrad = false, averages = false;
};

constexpr double learning_rate = 0.01, average_rate = 0.01;
constexpr int updates_done = 4;

// A parameter with its state, as the kernels have it.
template <class T>
struct Parameter {
  Parameter(int64_t n, const TrainingShape& shape)
      : value(random<T>(n, -0.3, 0.3)),
        exp_avg(random<T>(n, -0.1, 0.1)),
        exp_avg_sq(random<T>(n, 0.01, 0.1)),
        most(random<T>(shape.amsgrad ? n : 0, 0.01, 0.1)),
        average(random<T>(shape.averages ? n : 0, -0.3, 0.3)) {}

  fastgan::AdamParameter<T> adam_parameter(const fastgan::AdamStep<T>* step) {
    return {value.data(),
            exp_avg.data(),
            exp_avg_sq.data(),
            most.empty() ? nullptr : most.data(),
            average.empty() ? nullptr : average.data(),
            step};
  }
  std::vector<T> value, exp_avg, exp_avg_sq, most, average;
};

struct PlainParameter {
  Numbers value, exp_avg, exp_avg_sq, most, average;
  std::vector<Sum> sums;
  bool cancels = false;

  template <class T>
  explicit PlainParameter(const Parameter<T>& p)
      : value(numbers(p.value)),
        exp_avg(numbers(p.exp_avg)),
        exp_avg_sq(numbers(p.exp_avg_sq)),
        most(numbers(p.most)),
        average(numbers(p.average)),
        sums(p.value.size()) {}
  PlainParameter() = default;

  Bounded gradient(size_t i) const { return cancels ? Bounded() : sums[i].total(); }

  void update(const fastgan::AdamStep<Bounded>& step, Bounded scale, double rate_of_average) {
    for (size_t i = 0; i < value.size(); ++i) {
      Bounded largest = most.empty() ? Bounded() : most[i];
      fastgan::adam_update(step, !most.empty(), gradient(i) * scale, value[i], exp_avg[i], exp_avg_sq[i], largest);
      if (!most.empty()) most[i] = largest;
      if (!average.empty() && rate_of_average > 0)
        average[i] = fastgan::lerp(average[i], value[i], Bounded(rate_of_average));
    }
    sums.assign(value.size(), Sum());
  }
};

// A layer as a plain loop, and what a pass through it has left.
struct PlainLayer {
  fastgan::LayerKind kind;
  int64_t in, out;
  fastgan::ActivationArguments activation;
  PlainParameter weight, bias;
  Numbers running_mean, running_var;
  double momentum, eps, keep_scale;
  std::vector<Numbers> masks;
};
struct Passed {
  Numbers x, saved, normal, inverse;  // of batch_norm: its input normalised, and 1 / its standard deviation
};
using PlainNetwork = std::vector<PlainLayer>;

inline Numbers forward(PlainLayer& layer, int64_t batch, const Numbers& x, int mask, Passed& kept) {
  using fastgan::LayerKind;
  Numbers z;
  kept.x = x;
  switch (layer.kind) {
    case LayerKind::linear:
      z = linear(batch, layer.in, layer.out, x, layer.weight.value, layer.bias.value);
      break;
    case LayerKind::dropout:
      for (size_t i = 0; i < x.size(); ++i) z.push_back(x[i] * (layer.masks[mask][i] * Bounded(layer.keep_scale)));
      break;
    case LayerKind::batch_norm: {
      const int64_t width = layer.out;
      const Bounded n = double(batch), momentum = layer.momentum, rest = 1 - layer.momentum;
      z.resize(x.size()), kept.normal.resize(x.size()), kept.inverse.resize(width);
      for (int64_t c = 0; c < width; ++c) {
        Sum sum, squares;
        for (int64_t r = 0; r < batch; ++r) sum.add(x[r * width + c]);
        const Bounded mean = sum.total() / n;
        for (int64_t r = 0; r < batch; ++r) {
          const Bounded difference = x[r * width + c] - mean;
          squares.add(difference * difference);
        }
        const Bounded inverse = Bounded(1) / fastgan::sqrt_(squares.total() / n + Bounded(layer.eps));
        const Bounded scale = inverse * layer.weight.value[c], shift = layer.bias.value[c] - mean * scale;
        for (int64_t r = 0; r < batch; ++r) {
          kept.normal[r * width + c] = (x[r * width + c] - mean) * inverse;
          z[r * width + c] = x[r * width + c] * scale + shift;
        }
        kept.inverse[c] = inverse;
        layer.running_mean[c] = momentum * mean + rest * layer.running_mean[c];
        layer.running_var[c] = momentum * (squares.total() / Bounded(batch - 1.0)) + rest * layer.running_var[c];
      }
      break;
    }
    case LayerKind::identity:
    case LayerKind::segmented:
      break;  // not in these networks
  }
  const Numbers y = activated(layer.activation, z);
  kept.saved = saves_output(layer.activation) ? y : z;
  return y;
}

// From grad_z, with gradients of its parameters where `learns`, to the gradient by the input.
inline Numbers backward(PlainLayer& layer, int64_t batch, const Numbers& grad_z, int mask, const Passed& kept,
                        bool learns) {
  using fastgan::LayerKind;
  const int64_t in = layer.in, out = layer.out;
  Numbers grad(batch * in);
  switch (layer.kind) {
    case LayerKind::linear:
      for (int64_t r = 0; learns && r < batch; ++r)
        for (int64_t o = 0; o < out; ++o) {
          for (int64_t i = 0; i < in; ++i) layer.weight.sums[o * in + i].add(grad_z[r * out + o] * kept.x[r * in + i]);
          layer.bias.sums[o].add(grad_z[r * out + o]);
        }
      return by_input(batch, in, out, grad_z, layer.weight.value);
    case LayerKind::dropout:
      for (size_t i = 0; i < grad.size(); ++i) grad[i] = grad_z[i] * (layer.masks[mask][i] * Bounded(layer.keep_scale));
      return grad;
    case LayerKind::batch_norm:
      for (int64_t c = 0; c < out; ++c) {
        Sum sum, along;
        for (int64_t r = 0; r < batch; ++r) {
          const Bounded g = grad_z[r * out + c], product = g * kept.normal[r * out + c];
          sum.add(g), along.add(product);
          if (learns) layer.bias.sums[c].add(g), layer.weight.sums[c].add(product);
        }
        const Bounded n = double(batch), mean = sum.total() / n, slope = along.total() / n;
        const Bounded scale = kept.inverse[c] * layer.weight.value[c];
        for (int64_t r = 0; r < batch; ++r)
          grad[r * out + c] = scale * (grad_z[r * out + c] - mean - kept.normal[r * out + c] * slope);
      }
      return grad;
    case LayerKind::identity:
    case LayerKind::segmented:
      break;  // not in these networks
  }
  return grad;
}

// Through all layers; `passed` is one for each.
inline Numbers forward(PlainNetwork& network, int64_t batch, Numbers x, int mask, std::vector<Passed>& passed) {
  passed.assign(network.size(), {});
  for (size_t l = 0; l < network.size(); ++l) x = forward(network[l], batch, x, mask, passed[l]);
  return x;
}
inline Numbers backward(PlainNetwork& network, int64_t batch, Numbers grad_y, int mask,
                        const std::vector<Passed>& passed, bool learns) {
  for (size_t l = network.size(); l-- > 0;)
    grad_y =
        backward(network[l], batch, gradient(network[l].activation, grad_y, passed[l].saved), mask, passed[l], learns);
  return grad_y;
}

// weight / 2 times the mean of the squared gradient of D's output by its input, and what that adds to the gradients:
// step_penalties.h has the formulas. D's layers are linear.
inline Bounded penalise(PlainNetwork& d, int64_t batch, double weight, const std::vector<Passed>& passed) {
  const int count = int(d.size());
  std::vector<Numbers> above(count), delta(count), extra(count);
  Numbers g(batch, Bounded(1));
  for (int l = count; l-- > 0;) {
    above[l] = g;
    delta[l] = gradient(d[l].activation, g, passed[l].saved);
    g = by_input(batch, d[l].in, d[l].out, delta[l], d[l].weight.value);
  }
  Sum squares;
  for (const Bounded& element : g) squares.add(element * element);
  for (Bounded& element : g) element = element * Bounded(weight / double(batch));
  for (int l = 0; l < count; ++l) {
    const int64_t in = d[l].in, out = d[l].out;
    for (int64_t r = 0; r < batch; ++r)
      for (int64_t o = 0; o < out; ++o)
        for (int64_t i = 0; i < in; ++i) d[l].weight.sums[o * in + i].add(delta[l][r * out + o] * g[r * in + i]);
    const Numbers u = linear(batch, in, out, g, d[l].weight.value, {});
    for (size_t i = 0; i < u.size(); ++i)
      extra[l].push_back(second(d[l].activation, passed[l].saved[i]) * above[l][i] * u[i]);
    g = gradient(d[l].activation, u, passed[l].saved);
  }
  Numbers from_above;
  for (int l = count; l-- > 0;) {
    if (!from_above.empty()) {
      const Numbers through = gradient(d[l].activation, from_above, passed[l].saved);
      for (size_t i = 0; i < through.size(); ++i) extra[l][i] = extra[l][i] + through[i];
    }
    from_above = backward(d[l], batch, extra[l], 0, passed[l], true);
  }
  return squares.total() * Bounded(0.5 * weight / double(batch));
}

template <class T>
struct Training {
  explicit Training(const TrainingShape& s)
      : shape(s),
        options{0.5, 0.99, 0.1, 1e-8, s.amsgrad, false, true},
        step(fastgan::adam_step<T>(options, learning_rate, updates_done + 1)) {
    using fastgan::Activation;
    using fastgan::LayerKind;
    const fastgan::ActivationArguments identity{Activation::identity, 0};
    add(generator, LayerKind::linear, s.latent, s.hidden,
        s.normalised ? identity : fastgan::ActivationArguments{Activation::silu, 0});
    if (s.normalised) {
      generator.back().bias_cancels = true;
      add(generator, LayerKind::batch_norm, s.hidden, s.hidden, {Activation::softplus, 0});
      add(generator, LayerKind::dropout, s.hidden, s.hidden, identity);
    }
    add(generator, LayerKind::linear, s.hidden, s.data, {Activation::tanh, 0});
    add(discriminator, LayerKind::linear, s.data, s.d_width, s.d_hidden);
    if (s.normalised) add(discriminator, LayerKind::dropout, s.d_width, s.d_width, {Activation::elu, 0});
    add(discriminator, LayerKind::linear, s.d_width, 5, s.d_hidden);
    add(discriminator, LayerKind::linear, 5, 1, identity);
  }

  void add(std::vector<fastgan::StepLayer<T>>& network, fastgan::LayerKind kind, int64_t in, int64_t out,
           fastgan::ActivationArguments activation) {
    using fastgan::LayerKind;
    fastgan::StepLayer<T> layer;
    layer.kind = kind, layer.in = in, layer.out = out, layer.activation = activation;
    if (kind == LayerKind::linear || kind == LayerKind::batch_norm) {
      layer.weight = parameters.emplace_back(kind == LayerKind::linear ? in * out : out, shape).adam_parameter(&step);
      layer.bias = parameters.emplace_back(out, shape).adam_parameter(&step);
    }
    if (kind == LayerKind::batch_norm) {
      layer.running_mean = others.emplace_back(random<T>(out, 0.5, 1)).data();
      layer.running_var = others.emplace_back(random<T>(out, 0.5, 1)).data();
      layer.batch_statistics = true, layer.momentum = 0.25, layer.eps = 1e-3;
    }
    if (kind == LayerKind::dropout) {
      for (const T*& mask : layer.mask) {
        std::vector<T>& zeros_and_ones = others.emplace_back(random<T>(shape.batch * out, 0, 3));
        for (T& element : zeros_and_ones) element = element > T(1);
        mask = zeros_and_ones.data();
      }
      layer.keep_scale = 1.5;
    }
    network.push_back(layer);
  }

  fastgan::StepProblem<T> problem() {
    fastgan::StepProblem<T> p;
    p.generator = {int(generator.size()), generator.data()};
    p.discriminator = {int(discriminator.size()), discriminator.data()};
    p.batch = p.fake_batch = shape.batch, p.average_rate = shape.averages ? average_rate : 0;
    p.real = {real.data(), shape.data, shape.data, 1}, p.noise = {noise.data(), shape.latent, 1, shape.batch};
    return p;
  }

  // A network's parameters, their state and its statistics, after what the plain loop has made of them.
  void compare(const std::vector<fastgan::StepLayer<T>>& network, const PlainNetwork& plain,
               const std::string& about) const {
    std::vector<T> made[7];
    Numbers wanted[7];
    const auto take = [&](int which, const T* from, const Numbers& of) {
      if (!of.empty()) made[which].insert(made[which].end(), from, from + of.size());
      wanted[which].insert(wanted[which].end(), of.begin(), of.end());
    };
    for (size_t l = 0; l < network.size(); ++l) {
      for (const bool is_bias : {false, true}) {
        const fastgan::AdamParameter<T>& parameter = is_bias ? network[l].bias : network[l].weight;
        const PlainParameter& of = is_bias ? plain[l].bias : plain[l].weight;
        take(0, parameter.value, of.value), take(1, parameter.exp_avg, of.exp_avg);
        take(2, parameter.exp_avg_sq, of.exp_avg_sq), take(3, parameter.max_exp_avg_sq, of.most);
        take(4, parameter.average, of.average);
      }
      take(5, network[l].running_mean, plain[l].running_mean), take(6, network[l].running_var, plain[l].running_var);
    }
    constexpr const char* names[] = {"parameters",      "first moments", "second moments",   "largest second moments",
                                     "moving averages", "running means", "running variances"};
    for (int i = 0; i < 7; ++i)
      if (!wanted[i].empty()) expect(made[i], wanted[i], about + "'s " + names[i]);
  }

  const TrainingShape shape;
  const fastgan::AdamOptions options;
  const fastgan::AdamStep<T> step;
  std::deque<Parameter<T>> parameters;
  std::deque<std::vector<T>> others;
  std::vector<T> real = random<T>(shape.batch * shape.data, -1, 1);
  std::vector<T> noise = random<T>(shape.batch * shape.latent, -1, 1);  // column by column
  std::vector<fastgan::StepLayer<T>> generator, discriminator;
};

// The plain loop: what algorithm 1 of Goodfellow et al. says, with penalties of D's gradient.
struct PlainTraining {
  template <class T>
  PlainTraining(const Training<T>& training, const fastgan::StepProblem<T>& problem)
      : batch(training.shape.batch),
        step(fastgan::adam_step<Bounded>(training.options, learning_rate, updates_done + 1)),
        real(numbers(training.real)) {
    size_t next = 0;
    const auto copy = [&](const std::vector<fastgan::StepLayer<T>>& network, PlainNetwork& plain) {
      const auto at = [](const T* data, int64_t n) {
        return data == nullptr ? Numbers() : numbers(std::vector<T>(data, data + n));
      };
      for (const fastgan::StepLayer<T>& layer : network) {
        PlainLayer own{layer.kind,
                       layer.in,
                       layer.out,
                       layer.activation,
                       {},
                       {},
                       at(layer.running_mean, layer.out),
                       at(layer.running_var, layer.out),
                       layer.momentum,
                       layer.eps,
                       layer.keep_scale,
                       {}};
        if (layer.weight.value != nullptr) {
          own.weight = PlainParameter(training.parameters[next++]),
          own.bias = PlainParameter(training.parameters[next++]);
          own.bias.cancels = layer.bias_cancels;
        }
        for (const T* mask : layer.mask) own.masks.push_back(at(mask, batch * layer.out));
        plain.push_back(own);
      }
    };
    copy(training.generator, generator);
    copy(training.discriminator, discriminator);
    const Numbers columns = numbers(training.noise);
    for (int64_t r = 0; r < batch; ++r)
      for (int64_t c = 0; c < problem.noise.width; ++c) noise.push_back(columns[c * batch + r]);
  }

  // Of logits, or of the differences of a pair: the mean loss, and the derivatives.
  Bounded loss(const fastgan::LossPart& part, const Numbers& logits, Numbers& slopes) const {
    Sum sum;
    slopes.clear();
    fastgan::with_loss_term(part.term, [&](auto term) {
      for (const Bounded& x : logits) {
        const auto at = loss_at(term, x, part.target);
        sum.add(at.loss);
        slopes.push_back(Bounded(part.sign / double(batch)) * at.gradient);
      }
    });
    return sum.total() * Bounded(part.sign / double(batch));
  }
  Bounded score(const fastgan::GanLoss& of, const Numbers& logits) const {
    Sum sum;
    for (const Bounded& x : logits) sum.add(of.scores_probability ? fastgan::sigmoid_(x) : x);
    return sum.total() * Bounded(1 / double(batch));
  }

  void update(PlainNetwork& network, double clip_norm, double rate_of_average) {
    Bounded scale = 1;
    if (clip_norm > 0) {
      Sum squares;
      for (PlainLayer& layer : network)
        for (const PlainParameter* parameter : {&layer.weight, &layer.bias})
          for (size_t i = 0; i < parameter->value.size(); ++i)
            squares.add(parameter->gradient(i) * parameter->gradient(i));
      const Bounded wanted = Bounded(clip_norm) / (fastgan::sqrt_(squares.total()) + Bounded(1e-6));
      if (wanted < Bounded(1)) scale = wanted;
    }
    for (PlainLayer& layer : network)
      layer.weight.update(step, scale, rate_of_average), layer.bias.update(step, scale, rate_of_average);
  }

  template <class T>
  void discriminator_step(const fastgan::StepProblem<T>& problem) {
    fakes = forward(generator, batch, noise, 0, of_generator);
    std::vector<Passed> passed[2];
    const Numbers logits[] = {forward(discriminator, batch, real, 0, passed[0]),
                              forward(discriminator, batch, fakes, 1, passed[1])};
    real_score = score(problem.loss, logits[0]), fake_score = score(problem.loss, logits[1]);
    Numbers slopes[2];
    if (problem.loss.is_paired) {
      Numbers differences;
      for (int64_t i = 0; i < batch; ++i) differences.push_back(logits[0][i] - logits[1][i]);
      d_loss = loss(problem.loss.real, differences, slopes[0]);
      for (const Bounded& slope : slopes[0]) slopes[1].push_back(-slope);
    } else {
      d_loss = loss(problem.discriminator_part(0), logits[0], slopes[0]);
      d_loss = d_loss + loss(problem.discriminator_part(1), logits[1], slopes[1]);
    }
    penalty = 0;
    for (int part = 0; part < 2; ++part) {
      backward(discriminator, batch, slopes[part], part, passed[part], true);
      const double weight = problem.penalties.weight(part);
      if (weight > 0) penalty = penalty + penalise(discriminator, batch, weight, passed[part]);
    }
    update(discriminator, problem.clip_norm, 0);
    of_real = passed[0];
  }

  template <class T>
  void generator_step(const fastgan::StepProblem<T>& problem, bool fresh) {
    if (fresh) fakes = forward(generator, batch, noise, 0, of_generator);
    std::vector<Passed> passed;
    const int mask = problem.loss.is_paired ? 1 : 0;
    Numbers logits = forward(discriminator, batch, fakes, mask, passed), slopes;
    if (problem.loss.is_paired) {
      const Numbers of = forward(discriminator, batch, real, 0, of_real);
      for (int64_t i = 0; i < batch; ++i) logits[i] = logits[i] - of[i];
    }
    g_loss = loss(problem.loss.generator, logits, slopes);
    const Numbers grad = backward(discriminator, batch, slopes, mask, passed, false);
    backward(generator, batch, grad, 0, of_generator, true);
    update(generator, problem.clip_norm, problem.average_rate);
  }

  const int64_t batch;
  const fastgan::AdamStep<Bounded> step;
  const Numbers real;
  Numbers noise, fakes;
  PlainNetwork generator, discriminator;
  std::vector<Passed> of_generator, of_real;
  Bounded d_loss, g_loss, real_score, fake_score, penalty;
};

}  // namespace checks
