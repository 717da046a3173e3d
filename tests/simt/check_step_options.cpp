// The whole step with every loss, penalty and option, against its definition: the losses as functions of the
// parameters, differentiated by numbers that carry a derivative.
#include <cmath>

#include "check_training.h"

namespace checks {

namespace {

using fastgan::Activation;
using fastgan::LayerKind;
using fastgan::cuda::Rounding;

// A number and its derivative by one parameter.
struct Dual {
  double value = 0, d = 0;
  Dual(double value = 0, double d = 0) : value(value), d(d) {}
};
Dual operator+(Dual a, Dual b) { return {a.value + b.value, a.d + b.d}; }
Dual operator-(Dual a, Dual b) { return {a.value - b.value, a.d - b.d}; }
Dual operator*(Dual a, Dual b) { return {a.value * b.value, a.d * b.value + a.value * b.d}; }
Dual root(Dual a) { return {std::sqrt(a.value), a.value == 0 ? 0 : a.d / (2 * std::sqrt(a.value))}; }

using Duals = std::vector<Dual>;

Dual act(fastgan::ActivationArguments a, Dual z) {
  const double y = apply(a, z.value);
  return {y, derivative(a, saves_output(a) ? y : z.value, 1) * z.d};
}
Dual act_derivative(fastgan::ActivationArguments a, Dual z) {
  const double saved = saves_output(a) ? apply(a, z.value) : z.value;
  return {derivative(a, saved, 1), derivative(a, saved, 2) * z.d};
}
Dual sigmoid(Dual x) { return act({Activation::sigmoid, 0}, x); }
Dual sigmoid_derivative(Dual x) { return act_derivative({Activation::sigmoid, 0}, x); }

struct Choice {
  const char* loss = "non_saturating";
  double r1 = 0, r2 = 0, gp = 0, center = 1;
  bool is_due = true, of_probability = false;
  int64_t pac = 1, classes = 0;
  fastgan::ActivationArguments first{Activation::leaky_relu, 0.2}, second{Activation::leaky_relu, 0.2};
  fastgan::ActivationArguments last{Activation::identity, 0};
  bool drops = false, is_frozen = false, is_alone = false, fresh = false, is_deep = true;
  double clip_norm = 0, noise_scale = 0;

  std::string name() const {
    std::string name = std::string(loss) + (is_alone ? ", D alone" : "") + (is_deep ? "" : ", no hidden layer") +
                       (fresh ? ", fresh" : "");
    for (const auto& [what, number] : {std::pair{"r1", r1},
                                       {"r2", r2},
                                       {"gp", gp},
                                       {"center", center},
                                       {"due", double(is_due)},
                                       {"of_probability", double(of_probability)},
                                       {"pac", double(pac)},
                                       {"classes", double(classes)},
                                       {"drops", double(drops)},
                                       {"frozen", double(is_frozen)},
                                       {"clip", clip_norm},
                                       {"noise", noise_scale}})
      name += std::string(", ") + what + " " + std::to_string(number).substr(0, 4);
    for (const auto& activation : {first, second, last})
      name += std::string(" ") + fastgan::activation_names[int(activation.activation)];
    return name;
  }
};

template <class T>
struct OptionsCheck {
  static constexpr int64_t batch = 12, latent = 3, data = 4, g_hidden = 7, first_hidden = 9, second_hidden = 8;

  explicit OptionsCheck(const Choice& choice)
      : choice(choice), fake_batch(choice.is_alone && !is_paired() && choice.gp == 0 ? 18 : batch) {
    const int64_t classes = choice.classes, pac = choice.pac;
    if (!choice.is_alone) {
      add(generator, LayerKind::linear, latent + classes, g_hidden, {Activation::silu, 0});
      add(generator, LayerKind::linear, g_hidden, data, {Activation::tanh, 0});
    }
    const int64_t in = pac * (data + classes);
    if (choice.drops) add(discriminator, LayerKind::dropout, in, in, {Activation::identity, 0});
    if (choice.is_deep) {
      add(discriminator, LayerKind::linear, in, first_hidden, choice.first);
      if (choice.drops) add(discriminator, LayerKind::dropout, first_hidden, first_hidden, choice.second);
      add(discriminator, LayerKind::linear, first_hidden, second_hidden, choice.second);
      if (choice.drops) add(discriminator, LayerKind::identity, second_hidden, second_hidden, choice.first);
    }
    add(discriminator, LayerKind::linear, choice.is_deep ? second_hidden : in, 1, choice.last);
    for (int64_t i = 0; i < fake_batch; ++i) {
      if (i < batch) labels.data()[i] = classes == 0 ? 0 : i % classes;
      fake_labels.data()[i] = classes == 0 ? 0 : choice.is_alone ? (2 * i + 1) % classes : i % classes;
    }
  }

  bool is_paired() const { return fastgan::gan_loss_named(choice.loss)->is_paired; }

  void add(std::vector<fastgan::StepLayer<T>>& network, LayerKind kind, int64_t in, int64_t out,
           fastgan::ActivationArguments activation) {
    fastgan::StepLayer<T> layer;
    layer.kind = kind, layer.in = in, layer.out = out, layer.activation = activation;
    if (kind == LayerKind::linear) {
      for (const auto& [to, n] : {std::pair{&layer.weight, in * out}, {&layer.bias, out}}) {
        parameters.push_back(std::make_unique<Parameter<T>>(n));
        *to = parameters.back()->adam_parameter(&step);
        // Of every third a weight or a bias is frozen.
        if (choice.is_frozen && parameters.size() % 3 == 0) to->exp_avg = nullptr;
      }
    }
    if (kind == LayerKind::dropout) {
      for (const T*& mask : layer.mask) {
        masks.push_back(std::make_unique<Buffer<T>>(18 * out));
        for (int64_t i = 0; i < 18 * out; ++i) masks.back()->data()[i] = T((i + masks.size()) % 5 > 0);
        mask = masks.back()->data();
      }
      layer.keep_scale = 1.25;
    }
    network.push_back(layer);
  }

  fastgan::StepProblem<T> problem() {
    fastgan::StepProblem<T> problem;
    problem.generator = {int(generator.size()), generator.data()};
    problem.discriminator = {int(discriminator.size()), discriminator.data()};
    problem.batch = batch, problem.fake_batch = fake_batch;
    problem.pac = choice.pac, problem.classes = choice.classes;
    problem.loss = *fastgan::gan_loss_named(choice.loss);
    problem.real_target = 0.9, problem.fake_target = 0.2;
    problem.penalties = {choice.r1, choice.r2, choice.gp, choice.center, choice.is_due, choice.of_probability};
    problem.clip_norm = choice.clip_norm, problem.noise_scale = choice.noise_scale;
    problem.average_rate = average_rate;
    problem.real = {real.data(), data, 1, batch};  // columns
    problem.next_noise_follows = choice.fresh && !choice.is_alone;
    if (choice.is_alone)
      problem.fake = {fake.data(), data, data, 1};
    else
      problem.noise = {noise.data(), latent, latent, 1};
    if (choice.classes > 0) problem.labels = labels.data(), problem.fake_labels = fake_labels.data();
    if (choice.gp > 0) problem.mix = mix.data();
    return problem;
  }

  // ---- the definition ----

  // The parameters of both networks, the generator's first, with a derivative by number k.
  void differentiate_by(int64_t k) {
    numbers.clear();
    for (const auto& parameter : parameters)
      for (int64_t i = 0; i < parameter->value.size(); ++i)
        numbers.push_back({parameter->value[i], int64_t(numbers.size()) == k ? 1.0 : 0.0});
  }

  // One sample through a network; its parameters are numbers[at] and on. Of D the gradient by its input too.
  Duals run_network(const std::vector<fastgan::StepLayer<T>>& network, int64_t at, Duals x, int part, int64_t row,
                    Duals* gradient = nullptr) const {
    std::vector<Duals> z;
    std::vector<int64_t> places;
    for (const auto& layer : network) {
      places.push_back(at);
      Duals sums(layer.out);
      for (int64_t o = 0; o < layer.out; ++o) {
        if (layer.kind == LayerKind::linear) {
          for (int64_t i = 0; i < layer.in; ++i) sums[o] = sums[o] + numbers[at + o * layer.in + i] * x[i];
          sums[o] = sums[o] + numbers[at + layer.out * layer.in + o];
        } else {
          sums[o] = mask_of(layer, part, row, o) * x[o];
        }
      }
      if (layer.kind == LayerKind::linear) at += layer.out * (layer.in + 1);
      x.clear();
      for (const Dual& sum : sums) x.push_back(act(layer.activation, sum));
      z.push_back(sums);
    }
    if (gradient == nullptr) return x;
    Duals grad = {1.0};
    for (int l = int(network.size()) - 1; l >= 0; --l) {
      const auto& layer = network[l];
      Duals before(layer.in);
      for (int64_t o = 0; o < layer.out; ++o) {
        const Dual delta = grad[o] * act_derivative(layer.activation, z[l][o]);
        if (layer.kind == LayerKind::linear)
          for (int64_t i = 0; i < layer.in; ++i) before[i] = before[i] + numbers[places[l] + o * layer.in + i] * delta;
        else
          before[o] = delta * mask_of(layer, part, row, o);
      }
      grad = before;
    }
    *gradient = grad;
    return x;
  }

  static double mask_of(const fastgan::StepLayer<T>& layer, int part, int64_t row, int64_t col) {
    return layer.kind == LayerKind::dropout ? double(layer.mask[part][row * layer.out + col]) * layer.keep_scale : 1;
  }

  int64_t first_of_discriminator() const {
    int64_t n = 0;
    for (const auto& layer : generator) n += layer.out * (layer.in + 1);
    return n;
  }

  std::vector<Duals> packed(const std::vector<Duals>& samples, const Buffer<int64_t>& of_labels,
                            const Buffer<T>* instance_noise) const {
    std::vector<Duals> rows;
    for (size_t i = 0; i < samples.size(); ++i) {
      if (i % choice.pac == 0) rows.emplace_back();
      for (int64_t c = 0; c < data; ++c) {
        const double more = instance_noise == nullptr ? 0 : choice.noise_scale * (*instance_noise)[i * data + c];
        rows.back().push_back(samples[i][c] + more);
      }
      for (int64_t c = 0; c < choice.classes; ++c) rows.back().push_back(double(of_labels.data()[i] == c));
    }
    return rows;
  }

  std::vector<Duals> real_rows(const Buffer<T>* instance_noise) const {
    std::vector<Duals> samples(batch);
    for (int64_t r = 0; r < batch; ++r)
      for (int64_t c = 0; c < data; ++c) samples[r].push_back(real[c * batch + r]);
    return packed(samples, labels, instance_noise);
  }

  std::vector<Duals> fake_rows(const Buffer<T>* instance_noise) const {
    std::vector<Duals> samples;
    for (int64_t r = 0; r < fake_batch; ++r) {
      Duals sample;
      if (choice.is_alone) {
        for (int64_t c = 0; c < data; ++c) sample.push_back(fake[r * data + c]);
      } else {
        for (int64_t c = 0; c < latent; ++c) sample.push_back(noise[(first_noise + r) * latent + c]);
        for (int64_t c = 0; c < choice.classes; ++c) sample.push_back(double(labels.data()[r] == c));
        sample = run_network(generator, 0, sample, 0, r);
      }
      samples.push_back(sample);
    }
    return packed(samples, fake_labels, instance_noise);
  }

  static Dual term(const fastgan::LossPart& part, Dual x) {
    Dual value;
    fastgan::with_loss_term(part.term, [&](auto t) {
      const auto both = decltype(t)::at(x.value, part.target);
      value = {both.loss, both.gradient * x.d};
    });
    return part.sign * value;
  }

  struct Sums {
    Dual loss, penalty;
    double score[2] = {};
  };

  // D's loss, without or with what is added to it.
  Sums discriminator_loss(const std::vector<Duals>& real_in, const std::vector<Duals>& fake_in) {
    const auto of = problem();
    const int64_t at = first_of_discriminator();
    Sums sums;
    std::vector<Duals> mixed;
    for (size_t i = 0; choice.gp > 0 && i < real_in.size(); ++i) {
      mixed.emplace_back();
      for (size_t c = 0; c < real_in[i].size(); ++c) {
        const bool is_data = int64_t(c) % (data + choice.classes) < data;
        mixed[i].push_back(is_data ? mix[i] * real_in[i][c] + (1 - mix[i]) * fake_in[i][c] : real_in[i][c]);
      }
    }
    Duals logits[3];
    int part = 0;
    for (const std::vector<Duals>* rows :
         std::initializer_list<const std::vector<Duals>*>{&real_in, &fake_in, &mixed}) {
      const double n = double(rows->size());
      for (size_t i = 0; i < rows->size(); ++i) {
        Duals gradient;
        const Dual logit = run_network(discriminator, at, (*rows)[i], part, int64_t(i), &gradient)[0];
        logits[part].push_back(logit);
        if (part < 2) sums.score[part] += (of.loss.scores_probability ? sigmoid(logit) : logit).value / n;
        Dual squares;
        for (size_t c = 0; c < gradient.size(); ++c)
          if (int64_t(c) % (data + choice.classes) < data) squares = squares + gradient[c] * gradient[c];
        if (choice.of_probability) squares = squares * sigmoid_derivative(logit) * sigmoid_derivative(logit);
        const double weight = of.penalties.weight(part) / n;
        const Dual distance = root(squares) - choice.center;
        sums.penalty = sums.penalty + (part == 2 ? weight * (distance * distance) : weight / 2 * squares);
      }
      ++part;
    }
    for (int half = 0; half < 2; ++half)
      for (size_t i = 0; i < logits[half].size(); ++i) {
        const double n = double(logits[half].size());
        if (is_paired() && half == 1) continue;
        const Dual x = is_paired() ? logits[0][i] - logits[1][i] : logits[half][i];
        sums.loss = sums.loss + (1 / n) * term(of.discriminator_part(half), x);
      }
    return sums;
  }

  Dual generator_loss(const std::vector<Duals>& real_in, const std::vector<Duals>& fake_in) const {
    const fastgan::GanLoss loss = *fastgan::gan_loss_named(choice.loss);
    const int64_t at = first_of_discriminator();
    Dual sum;
    for (size_t i = 0; i < fake_in.size(); ++i) {
      Dual x = run_network(discriminator, at, fake_in[i], is_paired() ? 1 : 0, int64_t(i))[0];
      if (is_paired()) x = x - run_network(discriminator, at, real_in[i], 0, int64_t(i))[0];
      sum = sum + (1 / double(fake_in.size())) * term(loss.generator, x);
    }
    return sum;
  }

  // The gradient by the parameters [first, end), clipped.
  template <class Loss>
  std::vector<double> gradient_of(int64_t first, int64_t end, const Loss& loss) {
    std::vector<double> gradient(numbers.size());
    std::vector<bool> is_updated;
    for (const auto& parameter : parameters)
      is_updated.insert(is_updated.end(), parameter->value.size(), is_trained(*parameter));
    double squares = 0;
    for (int64_t k = first; k < end; ++k) {
      if (!is_updated[k]) continue;
      differentiate_by(k);
      gradient[k] = loss();
      squares += gradient[k] * gradient[k];
    }
    if (choice.clip_norm > 0)
      for (double& g : gradient) g *= std::min(1.0, choice.clip_norm / (std::sqrt(squares) + 1e-6));
    return gradient;
  }

  bool is_trained(const Parameter<T>& parameter) const {
    for (const auto* network : {&generator, &discriminator})
      for (const auto& layer : *network)
        for (const auto* one : {&layer.weight, &layer.bias})
          if (one->value == parameter.value.data()) return one->is_updated();
    return false;
  }

  // ---- the step ----

  void check(const fastgan::cuda::StepOptions& given, const Context& context, const std::string& way) {
    const std::string about = std::string(name_of<T>()) + " step " + way + ": " + choice.name();
    relative = given.rounding == Rounding::none ? 40 * tolerance<T> : given.rounding == Rounding::tf32 ? 5e-3 : 4e-2;
    fastgan::StepProblem<T> of = problem();
    const bool noisy = choice.noise_scale > 0;
    if (noisy)
      for (const int half : {0, 1}) of.instance_noise[half] = instance_noise[half].data();
    fastgan::cuda::StepOptions options = given;
    options.noise_scale = &choice.noise_scale;
    unsigned odd_label = 0;
    options.odd_labels.found = &odd_label;
    Due due(context);
    void* const workspace = context.scratch(fastgan::cuda::step_workspace(context, of));
    fastgan::StepSums<T> sums{};
    sums.penalty = 77;

    differentiate_by(-1);
    const int64_t middle = first_of_discriminator(), all = int64_t(numbers.size());
    const auto real_in = real_rows(noisy ? &instance_noise[0] : nullptr);
    const auto fake_in = fake_rows(noisy ? &instance_noise[1] : nullptr);
    const Sums exact = discriminator_loss(real_in, fake_in);
    const auto by_discriminator = gradient_of(middle, all, [&] {
      const Sums own = discriminator_loss(real_in, fake_in);
      return own.loss.d + own.penalty.d;
    });
    expect_update(about + ", D", middle, all, by_discriminator, 0,
                  [&] { fastgan::cuda::discriminator_step(context, of, workspace, &sums, options, due.of(0, step)); });
    expect_close(sums.d_loss, exact.loss.value, 1, relative, about + ", D's loss");
    expect_close(sums.penalty, exact.penalty.value, 1, relative, about + ", the penalty");
    expect_close(sums.real_score, exact.score[0], 1, relative, about + ", the score of real data");
    expect_close(sums.fake_score, exact.score[1], 1, relative, about + ", the score of fakes");
    if (choice.is_alone) return;

    // Other noise on D's inputs, and on G's where its fakes are fresh.
    if (choice.fresh) first_noise = batch, of.noise.data += batch * latent;
    if (noisy)
      for (const int half : {0, 1}) of.instance_noise[half] = instance_noise[2 + half].data();
    differentiate_by(-1);
    const auto loss = [&] {
      return generator_loss(real_rows(noisy ? &instance_noise[2] : nullptr),
                            fake_rows(noisy ? &instance_noise[3] : nullptr));
    };
    const double g_loss = loss().value;
    const auto by_generator = gradient_of(0, middle, [&] { return loss().d; });
    expect_update(about + ", G", 0, middle, by_generator, average_rate, [&] {
      fastgan::cuda::generator_step(context, of, workspace, choice.fresh, &sums, options, due.of(1, step));
    });
    expect(due.counts[0] == updates_done + 1 && due.counts[1] == updates_done + 1, about + ", updates are counted");
    expect_close(sums.g_loss, g_loss, 1, relative, about + ", G's loss");
  }

  // Runs an update, and holds the parameters in [first, end) against Adam's by its definition, the others against
  // themselves.
  template <class Run>
  void expect_update(const std::string& about, int64_t first, int64_t end, const std::vector<double>& gradient,
                     double rate_of_average, const Run& run) {
    std::vector<PlainParameter> exact;
    int64_t at = 0;
    for (const auto& parameter : parameters) {
      PlainParameter plain = plain_of(*parameter);
      plain.is_updated = at >= first && at < end && is_trained(*parameter);
      plain.grad.assign(gradient.begin() + at, gradient.begin() + at + parameter->value.size());
      at += parameter->value.size();
      plain.update(rate_of_average);
      exact.push_back(plain);
    }
    run();
    for (size_t k = 0; k < parameters.size(); ++k)
      for (int64_t i = 0; i < parameters[k]->value.size(); ++i)
        for (const auto& [now, then, what] : {std::tuple{&parameters[k]->value, &exact[k].value, "parameters"},
                                              {&parameters[k]->exp_avg, &exact[k].exp_avg, "first moments"},
                                              {&parameters[k]->exp_avg_sq, &exact[k].exp_avg_sq, "second moments"},
                                              {&parameters[k]->average, &exact[k].average, "moving averages"}})
          expect_close((*now)[i], (*then)[i], 1, relative, about + ", " + what);
  }

  const Choice choice;
  const int64_t fake_batch;
  int64_t first_noise = 0;  // the row of `noise` that a step begins at
  double relative = 0;      // how far a result may be from the exact one
  fastgan::AdamStep<T> step{};
  std::vector<std::unique_ptr<Parameter<T>>> parameters;
  std::vector<std::unique_ptr<Buffer<T>>> masks;
  Buffer<int64_t> labels{batch}, fake_labels{18};
  Buffer<T> real = random<T>(batch * data, -1, 1), noise = random<T>(2 * batch * latent, -1, 1);
  Buffer<T> fake = random<T>(18 * data, -1, 1), mix = random<T>(batch, 0, 1);
  Buffer<T> instance_noise[4] = {random<T>(batch * data), random<T>(batch * data), random<T>(batch * data),
                                 random<T>(batch * data)};
  std::vector<fastgan::StepLayer<T>> generator, discriminator;
  Duals numbers;
};

template <class T>
void check_ways(const Choice& choice) {
  OptionsCheck<T>(choice).check({Rounding::none, false}, Context(), "by layers");
  OptionsCheck<T>(choice).check({Rounding::none, false}, LibraryContext([](int64_t m) { return m % 3 != 0; }),
                                "with a library for some");
  if (!choice.drops) OptionsCheck<T>(choice).check({Rounding::none, true}, Context(), "by networks");
}

// The products of a penalty round as all others do.
void check_rounded(const Choice& choice) {
  for (const bool narrow : {false, true}) {
    OptionsCheck<float>(choice).check({Rounding::tf32, narrow}, Context(), "in tf32");
    OptionsCheck<float>(choice).check({Rounding::bf16, narrow}, Context(), "in bf16");
  }
}

// Choices of everything at once, so that each pair of them comes up.
Choice any_choice(std::mt19937& generator) {
  const auto pick = [&](const auto& list) { return list[generator() % std::size(list)]; };
  const char* losses[] = {"non_saturating", "minimax", "relativistic", "hinge", "wasserstein", "least_squares"};
  const fastgan::ActivationArguments linear[] = {
      {Activation::identity, 0}, {Activation::relu, 0}, {Activation::leaky_relu, 0.2}, {Activation::leaky_relu, -0.3}};
  const fastgan::ActivationArguments smooth[] = {
      {Activation::elu, 0},  {Activation::tanh, 0}, {Activation::sigmoid, 0}, {Activation::softplus, 0},
      {Activation::silu, 0}, {Activation::gelu, 0}, {Activation::relu, 0}};
  const double penalties[][3] = {{0, 0, 0}, {2, 0, 0}, {0, 3, 0},   {2, 3, 0},
                                 {0, 0, 4}, {2, 0, 4}, {0, 1.5, 4}, {2, 1, 3}};
  const bool is_smooth = generator() % 2 == 1, yes_no[] = {false, true};
  Choice choice;
  choice.loss = pick(losses);
  const auto* weights = penalties[generator() % std::size(penalties)];
  choice.r1 = weights[0], choice.r2 = weights[1], choice.gp = weights[2];
  choice.center = pick(std::array{1.0, 0.0});
  choice.is_due = generator() % 4 > 0, choice.of_probability = generator() % 3 == 0;
  choice.pac = pick(std::array{1, 1, 2, 3}), choice.classes = pick(std::array{0, 0, 3});
  choice.first = is_smooth ? pick(smooth) : pick(linear), choice.second = is_smooth ? pick(smooth) : pick(linear);
  if (generator() % 3 == 0) choice.last = is_smooth ? pick(smooth) : pick(linear);
  choice.is_deep = generator() % 6 > 0;
  choice.drops = pick(yes_no), choice.is_frozen = generator() % 4 == 0;
  choice.is_alone = generator() % 4 == 0, choice.fresh = pick(yes_no);
  choice.clip_norm = pick(std::array{0.0, 0.0, 0.05, 100.0});
  choice.noise_scale = choice.is_alone ? 0 : pick(std::array{0.0, 0.0, 0.3});
  return choice;
}

}  // namespace

void check_step_options() {
  std::mt19937 generator(11);
  Choice smooth;
  smooth.r1 = 2, smooth.gp = 1, smooth.first = smooth.second = {Activation::silu, 0}, smooth.pac = 2;
  check_ways<float>(smooth);
  Choice wgan;
  wgan.loss = "wasserstein", wgan.gp = 10, wgan.clip_norm = 0.1, wgan.classes = 3;
  check_ways<float>(wgan);
  Choice paired;
  paired.loss = "relativistic", paired.r1 = paired.r2 = 1, paired.fresh = true;
  check_ways<float>(paired);
  Choice ahead;
  ahead.fresh = true;
  check_ways<float>(ahead);
  if (few) return;
  for (const Choice& choice : {smooth, wgan, paired}) check_rounded(choice);
  for (int i = 0; i < 240; ++i) check_ways<double>(any_choice(generator));
  for (int i = 0; i < 60; ++i) check_ways<float>(any_choice(generator));
}

}  // namespace checks
