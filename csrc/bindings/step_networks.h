// What the whole-step engine knows of the two networks and of the step: read once from Python, kept from step to step.
#pragma once

#include <ATen/core/Generator.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../core/step.h"
#include "common.h"
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
  std::vector<Tensor> masks;  // of dropout: of the first and the second half
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
  int64_t latent, data, classes, d_steps;
  bool reuse_fake;
  double real_target, fake_target;
  GanLoss loss;
  double average_rate;
  int64_t least_batch;
  bool bf16;

  int64_t rows_of_noise() const { return d_steps + (reuse_fake ? 0 : 1); }
};

// The inputs of a step: real (1 or d_steps, batch, data), noise (rows, batch, latent), labels (1 or d_steps, batch), or
// none without classes.
struct StepInputs {
  Tensor real, noise, labels;

  int64_t batch() const { return real.size(1); }
};

struct StepNetworks {
  Network networks[2];

  // A tensor of the plan's dtype and device.
  const Tensor& first() const {
    for (const Layer& layer : networks[generator_index].layers)
      if (layer.weight.value.defined()) return layer.weight.value;
    TORCH_INTERNAL_ASSERT(false, "the generator has no parameter");
  }

  // What draws; torch's own generator of the device where it is none.
  std::optional<at::Generator> generator;

  void draw(const Tensor& noise) const { noise.normal_(0, 1, generator); }

  // As torch.nn.functional.dropout draws it: batch after batch, layer after layer.
  void draw_masks(int network, int half, int64_t batch) {
    for (Layer& layer : networks[network].layers) {
      if (layer.kind != LayerKind::dropout || layer.drop == 0) continue;
      layer.masks.resize(2);
      Tensor& mask = layer.masks[half];
      if (!mask.defined() || mask.size(0) != batch) mask = at::zeros({batch, layer.out}, first().options());
      if (layer.drop < 1) mask.bernoulli_(1 - layer.drop, generator);
    }
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
        for (size_t half = 0; half < from.masks.size(); ++half) to.mask[half] = pointer<T>(from.masks[half]);
        to.keep_scale = from.drop < 1 ? 1 / (1 - from.drop) : 1;
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

// The parts of a step, in their order, on a device: prepare(network), reserve(problem), discriminator_step(problem),
// generator_step(problem, fresh).
template <class T, class Device>
void run_step(Device& device, StepNetworks& networks, const StepSettings& settings, const StepInputs& inputs) {
  StepProblem<T> problem;
  problem.batch = problem.fake_batch = inputs.batch(), problem.classes = settings.classes;
  problem.real_target = settings.real_target, problem.fake_target = settings.fake_target;
  problem.loss = settings.loss, problem.average_rate = settings.average_rate;
  problem.bf16 = settings.bf16;
  const auto take_inputs = [&](int64_t i) {
    const auto rows = [&](const Tensor& t) {
      const int64_t k = std::min(i, t.size(0) - 1);
      return StridedRows<T>{data<T>(t) + k * t.stride(0), t.size(2), t.stride(1), t.stride(2)};
    };
    problem.real = rows(inputs.real), problem.noise = rows(inputs.noise);
    if (settings.classes == 0) return;
    const int64_t k = std::min(i, inputs.labels.size(0) - 1);
    problem.labels = data<int64_t>(inputs.labels) + k * inputs.labels.stride(0);
  };
  for (int64_t i = 0; i < settings.d_steps; ++i) {
    networks.draw_masks(generator_index, 0, problem.batch);
    networks.draw_masks(discriminator_index, 0, problem.batch);
    networks.draw_masks(discriminator_index, 1, problem.batch);
    networks.fill(problem);
    take_inputs(i);
    device.reserve(problem);  // before anything of the user's is written: there may be no memory
    device.prepare(discriminator_index);
    device.discriminator_step(problem);
  }
  if (!settings.reuse_fake) networks.draw_masks(generator_index, 0, problem.batch);
  networks.draw_masks(discriminator_index, 0, problem.batch);
  device.prepare(generator_index);
  networks.fill(problem);
  take_inputs(settings.d_steps);
  device.generator_step(problem, !settings.reuse_fake);
}

}  // namespace fastgan::bindings
