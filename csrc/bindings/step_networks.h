// What the whole-step engine knows of the two networks and of the step: read once from Python, kept from step to step.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "../core/step.h"
#include "common.h"
#include "segment_list.h"
#include "step_parameter.h"

namespace fastgan::bindings {

// What Python says of a layer, and the tensors behind it.
struct Layer {
  LayerKind kind;
  int64_t in, out;
  ActivationArguments activation;
  Parameter weight, bias;
  Tensor running_mean, running_var, batches;  // of batch_norm
  bool batch_statistics = false, cumulative = false;
  double momentum = 0, eps = 0, drop = 0;
  bool draws_bits = false;    // of dropout: masks that need not be torch's own, on the CPU
  std::vector<Tensor> masks;  // of dropout: of each part of a batch
  std::shared_ptr<const SegmentList> segments;
  Tensor gumbel;  // of segmented
};

struct Network {
  std::vector<Layer> layers;

  template <class F>
  void for_parameters(const F& f) {
    for (Layer& layer : layers) {
      if (layer.weight.exists()) f(layer.weight);
      if (layer.bias.exists()) f(layer.bias);
    }
  }
  template <class F>
  void for_parameters(const F& f) const {
    const_cast<Network*>(this)->for_parameters([&](const Parameter& parameter) { f(parameter); });
  }
};

constexpr int generator_index = 0, discriminator_index = 1;

struct StepSettings {
  int64_t latent, data, classes, pac, d_steps;
  bool reuse_fake;
  GanLoss loss;
  double real_target, fake_target;
  Penalties penalties;
  double clip_norm, average_rate;
  bool has_noise;
  int64_t least_batch;
  double condition_weight;
  bool bf16;

  int64_t rows_of_noise() const { return d_steps + (reuse_fake ? 0 : 1); }
};

// The inputs of a step: real (1 or d_steps, batch, data), noise (rows, batch, latent), labels (1 or d_steps, batch), or
// none without classes. Of D alone: no noise, but fakes (1, fake batch, data) and their labels (1, fake batch).
struct StepInputs {
  Tensor real, noise, labels, fake = {}, fake_labels = {};
  bool penalties_are_due = false;
  double noise_scale = 0;  // of the noise on D's inputs

  int64_t batch() const { return real.size(1); }
  int64_t fake_batch() const { return fake.defined() ? fake.size(1) : batch(); }
};

// What a step draws beside its noise and masks.
struct Draws {
  Tensor instance_noise[2];  // on real data and on fakes: (batch, data)
  Tensor mix;                // where between them the penalty gp lies: (batch / pac)
};

struct StepNetworks {
  Network networks[2];

  // A tensor of the plan's dtype and device.
  const Tensor& first() const {
    for (const Network& network : networks)
      for (const Layer& layer : network.layers)
        if (layer.weight.value.defined()) return layer.weight.value;
    TORCH_INTERNAL_ASSERT(false, "the networks have no parameter");
  }

  // What draws; torch's own generator of the device where it is none.
  std::optional<at::Generator> generator;

  void draw(const Tensor& noise) const { noise.normal_(0, 1, generator); }

  Draws draws;

  void draw_instance_noise(int half, int64_t batch, int64_t width) {
    Tensor& noise = draws.instance_noise[half];
    if (!noise.defined() || noise.size(0) != batch) noise = at::empty({batch, width}, first().options());
    noise.normal_(0, 1, generator);
  }

  void draw_mix(int64_t inputs) {
    if (!draws.mix.defined() || draws.mix.size(0) != inputs) draws.mix = at::empty({inputs}, first().options());
    draws.mix.uniform_(0, 1, generator);
  }

  // As torch.nn.functional.dropout and reference.gumbel_noise draw it: batch after batch, layer after layer.
  void draw_of_layers(int network, int part, int64_t batch) {
    for (Layer& layer : networks[network].layers) {
      if (layer.kind == LayerKind::segmented) draw_gumbel(layer, batch);
      if (layer.kind != LayerKind::dropout || layer.drop == 0) continue;
      layer.masks.resize(most_parts);
      Tensor& mask = layer.masks[part];
      if (!mask.defined() || mask.size(0) != batch) mask = at::zeros({batch, layer.out}, first().options());
      if (layer.drop == 1) continue;
      if (layer.draws_bits && mask.is_cpu() && mask.scalar_type() == at::kFloat)
        draw_bits(mask, 1 - layer.drop);
      else
        mask.bernoulli_(1 - layer.drop, generator);
    }
  }

  // As bernoulli_, from other bits of the same generator: one an element where `keep` is a half, else 32. bernoulli_
  // takes 64 of them, and 12 ns.
  void draw_bits(const Tensor& mask, double keep) const {
    auto* const gen =
        at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
    const std::lock_guard<std::mutex> lock(gen->mutex_);
    float* const out = mask.mutable_data_ptr<float>();
    const int64_t n = mask.numel();
    if (keep == 0.5) {
      for (int64_t at = 0; at < n; at += 32) {
        const uint32_t bits = gen->random();
        for (int64_t i = 0; i < std::min<int64_t>(32, n - at); ++i) out[at + i] = float(bits >> i & 1);
      }
      return;
    }
    const double below = keep * 4294967296.0;
    for (int64_t i = 0; i < n; ++i) out[i] = float(double(gen->random()) < below);
  }

  // g = -log(-log u), a zero u taken for the smallest number.
  void draw_gumbel(Layer& layer, int64_t batch) const {
    const int64_t columns = layer.segments->get().gumbel_columns;
    if (columns == 0) return;
    Tensor& noise = layer.gumbel;
    if (!noise.defined() || noise.size(0) != batch) noise = at::empty({batch, columns}, first().options());
    const double least = noise.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                                            : double{std::numeric_limits<float>::min()};
    noise.uniform_(0, 1, generator).clamp_min_(least).log_().neg_().log_().neg_();
  }

  // The problem's networks, as they are now.
  template <class T>
  void fill(StepProblem<T>& problem) {
    std::vector<StepLayer<T>>* layers = layers_of(T());
    for (int n = 0; n < 2; ++n) {
      layers[n].clear();
      for (Layer& from : networks[n].layers) {
        StepLayer<T> to;
        to.kind = from.kind;
        to.in = from.in, to.out = from.out;
        to.activation = from.activation;
        to.weight = from.weight.adam_parameter<T>(), to.bias = from.bias.adam_parameter<T>();
        to.batch_statistics = from.batch_statistics;
        to.running_mean = pointer<T>(from.running_mean), to.running_var = pointer<T>(from.running_var);
        to.batches = pointer<int64_t>(from.batches);
        to.momentum = from.momentum, to.cumulative = from.cumulative, to.eps = from.eps;
        for (size_t part = 0; part < from.masks.size(); ++part) to.mask[part] = pointer<T>(from.masks[part]);
        to.keep_scale = from.drop < 1 ? 1 / (1 - from.drop) : 1;
        if (from.segments) to.segments = from.segments->get();
        to.gumbel = pointer<T>(from.gumbel);
        layers[n].push_back(to);
      }
      for (size_t l = 0; l + 1 < layers[n].size(); ++l) {
        const StepLayer<T>& next = layers[n][l + 1];
        layers[n][l].bias_cancels = layers[n][l].activation.activation == Activation::identity &&
                                    next.kind == LayerKind::batch_norm && next.batch_statistics;
      }
    }
    problem.generator = {int(layers[generator_index].size()), layers[generator_index].data()};
    problem.discriminator = {int(layers[discriminator_index].size()), layers[discriminator_index].data()};
  }

 private:
  std::vector<StepLayer<float>>* layers_of(float) { return float_layers_; }
  std::vector<StepLayer<double>>* layers_of(double) { return double_layers_; }

  std::vector<StepLayer<float>> float_layers_[2];  // kept, so that a step allocates nothing
  std::vector<StepLayer<double>> double_layers_[2];
};

template <class T>
StepProblem<T> problem_of(const StepSettings& settings, const StepInputs& inputs) {
  StepProblem<T> problem;
  problem.batch = inputs.batch(), problem.fake_batch = inputs.fake_batch();
  problem.pac = settings.pac, problem.classes = settings.classes;
  problem.loss = settings.loss;
  problem.real_target = settings.real_target, problem.fake_target = settings.fake_target;
  problem.penalties = settings.penalties;
  problem.penalties.are_due = inputs.penalties_are_due;
  problem.clip_norm = settings.clip_norm, problem.average_rate = settings.average_rate;
  problem.has_noise = settings.has_noise, problem.noise_scale = inputs.noise_scale;
  problem.condition_weight = settings.condition_weight;
  problem.bf16 = settings.bf16;
  return problem;
}

// The inputs of the D step with number i, counted from zero, and what was drawn for it.
template <class T>
void take_inputs(StepProblem<T>& problem, const StepInputs& inputs, const Draws& draws, int64_t i) {
  const auto rows = [&](const Tensor& t) {
    if (!t.defined()) return StridedRows<T>{};
    const int64_t k = std::min(i, t.size(0) - 1);
    return StridedRows<T>{data<T>(t) + k * t.stride(0), t.size(2), t.stride(1), t.stride(2)};
  };
  const auto labels = [&](const Tensor& t) {
    return problem.classes == 0 ? nullptr : data<int64_t>(t) + std::min(i, t.size(0) - 1) * t.stride(0);
  };
  problem.real = rows(inputs.real), problem.noise = rows(inputs.noise), problem.fake = rows(inputs.fake);
  problem.labels = labels(inputs.labels);
  problem.fake_labels = inputs.fake_labels.defined() ? labels(inputs.fake_labels) : problem.labels;
  for (int half = 0; half < 2; ++half)
    problem.instance_noise[half] = problem.noise_scale > 0 ? pointer<T>(draws.instance_noise[half]) : nullptr;
  problem.mix = problem.penalties.gp > 0 ? pointer<T>(draws.mix) : nullptr;
  if (problem.condition_weight > 0) {  // the classes are the last of the columns that have draws
    StepLayer<T>& last = problem.generator.layers[problem.generator.count - 1];
    last.asked = problem.labels;
    last.asked_from = last.segments.gumbel_columns - problem.classes;
    last.asked_scale = problem.condition_weight / double(problem.batch);
  }
}

// One update of D: what it draws beside G's masks, in the order of the plain loop, and the step.
template <class T, class Device>
void run_discriminator_step(Device& device, StepNetworks& networks, const StepSettings& settings,
                            const StepInputs& inputs, StepProblem<T>& problem, int64_t i) {
  const int64_t inputs_of_d[] = {problem.batch / problem.pac, problem.fake_batch / problem.pac};
  if (problem.noise_scale > 0)
    for (const int half : {0, 1}) networks.draw_instance_noise(half, problem.batch, settings.data);
  for (const int half : {0, 1}) networks.draw_of_layers(discriminator_index, half, inputs_of_d[half]);
  if (problem.penalties.gp > 0) {
    networks.draw_mix(inputs_of_d[0]);
    networks.draw_of_layers(discriminator_index, 2, inputs_of_d[0]);
  }
  networks.fill(problem);
  take_inputs(problem, inputs, networks.draws, i);
  device.reserve(problem);  // before anything of the user's is written: there may be no memory
  device.prepare(discriminator_index);
  device.discriminator_step(problem);
}

// The parts of a step, in their order, on a device: prepare(network), reserve(problem), discriminator_step(problem),
// generator_step(problem, fresh).
template <class T, class Device>
void run_step(Device& device, StepNetworks& networks, const StepSettings& settings, const StepInputs& inputs) {
  StepProblem<T> problem = problem_of<T>(settings, inputs);
  if (inputs.fake.defined()) return run_discriminator_step(device, networks, settings, inputs, problem, 0);
  problem.next_noise_follows = settings.d_steps == 1 && !settings.reuse_fake && inputs.noise.size(0) == 2 &&
                               inputs.noise.stride(0) == problem.batch * inputs.noise.stride(1) &&
                               (!inputs.labels.defined() || inputs.labels.size(0) == 1);
  for (int64_t i = 0; i < settings.d_steps; ++i) {
    networks.draw_of_layers(generator_index, 0, problem.batch);
    run_discriminator_step(device, networks, settings, inputs, problem, i);
  }
  if (!settings.reuse_fake) networks.draw_of_layers(generator_index, 0, problem.batch);
  const bool is_paired = problem.loss.is_paired;  // real data go through D too, first
  for (const int half : {0, 1})
    if (problem.noise_scale > 0 && (half == 1 || is_paired))
      networks.draw_instance_noise(half, problem.batch, settings.data);
  for (const int half : {0, 1})  // of one half alone the masks are the first
    if (half == 0 || is_paired) networks.draw_of_layers(discriminator_index, half, problem.batch / problem.pac);
  device.prepare(generator_index);
  networks.fill(problem);
  take_inputs(problem, inputs, networks.draws, settings.d_steps);
  device.generator_step(problem, !settings.reuse_fake);
}

}  // namespace fastgan::bindings
