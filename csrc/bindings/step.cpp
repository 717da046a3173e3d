// torch.classes.fastgan.StepEngine: a whole training step over the user's parameters and optimizer state, in place.
//
// Python describes the networks once (fastgan/engine.py) and binds the tensors; a step then reads their addresses,
// draws noise and masks as torch would, and calls the kernels of csrc/*/step.h. Nothing is allocated but the result.
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/custom_class.h>

#include "common.h"
#include "scopes.h"
#include "step_parameter.h"

#ifndef FASTGAN_SIMT
#include "../cpu/step.h"
#endif

namespace fastgan::bindings {

namespace {

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
      if (layer.weight.value.defined()) f(layer.weight);
      if (layer.bias.value.defined()) f(layer.bias);
    }
  }
};

class StepEngine : public torch::CustomClassHolder {
 public:
  StepEngine(int64_t latent, int64_t classes, int64_t d_steps, bool reuse_fake)
      : latent_(latent), classes_(classes), d_steps_(d_steps), reuse_fake_(reuse_fake) {}

  // Network 0 is the generator, 1 the discriminator.
  void add_layer(int64_t network, int64_t kind, int64_t in, int64_t out, int64_t activation, double negative_slope) {
    TORCH_CHECK(activation >= 0 && activation < int64_t(Activation::count), "no such activation: ", activation);
    Layer layer{};
    layer.kind = static_cast<LayerKind>(kind);
    layer.in = in, layer.out = out;
    layer.activation = {static_cast<Activation>(activation), negative_slope};
    networks_[network].layers.push_back(std::move(layer));
  }

  void set_batch_norm(int64_t network, std::optional<Tensor> mean, std::optional<Tensor> var,
                      std::optional<Tensor> batches, bool batch_statistics, std::optional<double> momentum,
                      double eps) {
    Layer& layer = networks_[network].layers.back();
    layer.running_mean = mean.value_or(Tensor());
    layer.running_var = var.value_or(Tensor());
    layer.batches = batches.value_or(Tensor());
    layer.batch_statistics = batch_statistics;
    layer.cumulative = !momentum;
    layer.momentum = momentum.value_or(0);
    layer.eps = eps;
  }

  void set_dropout(int64_t network, double p) { networks_[network].layers.back().drop = p; }

  // Of the last layer added: its weight, then its bias. Group -1: frozen.
  void add_parameter(int64_t network, bool is_bias, Tensor value, std::optional<Tensor> average, int64_t group,
                     std::vector<Tensor> state) {
    Layer& layer = networks_[network].layers.back();
    (is_bias ? layer.bias : layer.weight) = Parameter(std::move(value), average.value_or(Tensor()), group, state);
  }

  // A buffer of the generator that its moving average takes over as it is.
  void add_copied_buffer(Tensor average, Tensor buffer) { copied_.emplace_back(std::move(average), std::move(buffer)); }

  // Whether the tensors are still such as the plan was made for; where not, it must be made anew.
  bool is_current(const Tensor& real) {
    bool current = true;
    for (Network& network : networks_)
      network.for_parameters([&](Parameter& parameter) { current = current && parameter.is_current(real); });
    return current;
  }

  // One step. hyperparameters: of each group lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, decoupled. real is
  // (d_steps, batch, data), labels (d_steps, batch). Returns d_loss, g_loss, real_score, fake_score; or nothing, and
  // nothing done, where the plan is out of date.
  std::optional<Tensor> step(const Tensor& real, const std::optional<Tensor>& noise,
                             const std::optional<Tensor>& labels, const std::vector<double>& hyperparameters,
                             const std::vector<double>& losses) {
    const at::NoGradGuard no_grad;
    const WithoutAutocast without_autocast;
    if (!is_current(real)) return std::nullopt;
    at::internal::lazy_init_num_threads();
    const int64_t batch = real.size(1);
    Tensor drawn = noise.value_or(Tensor());
    if (!drawn.defined()) drawn = draw_noise(real, batch);
    Tensor result = at::empty({4}, real.options());
    if (real.scalar_type() == at::kDouble)
      run<double>(real, drawn, labels, hyperparameters, losses, result);
    else
      run<float>(real, drawn, labels, hyperparameters, losses, result);
    after_update(losses[3]);
    return result;
  }

  // Of the last step, with seconds of each phase, in the order of csrc/cpu/step.h; to be asked for before it.
  void set_timed(bool timed) { timed_ = timed; }
  std::vector<double> seconds() const { return std::vector<double>(seconds_, seconds_ + int(cpu::StepPhase::count)); }

 private:
  Tensor draw_noise(const Tensor& real, int64_t batch) {
    const int64_t rows = d_steps_ + (reuse_fake_ ? 0 : 1);
    if (!noise_.defined() || noise_.size(1) != batch || noise_.scalar_type() != real.scalar_type())
      noise_ = at::empty({rows, batch, latent_}, real.options());
    return noise_.normal_();
  }

  // As torch.nn.functional.dropout draws it: batch after batch, layer after layer.
  void draw_masks(int network, int half, const Tensor& like, int64_t batch) {
    for (Layer& layer : networks_[network].layers) {
      if (layer.kind != LayerKind::dropout || layer.drop == 0) continue;
      layer.masks.resize(2);
      Tensor& mask = layer.masks[half];
      if (!mask.defined() || mask.size(0) != batch) mask = at::zeros({batch, layer.out}, like.options());
      if (layer.drop < 1) mask.bernoulli_(1 - layer.drop);
    }
  }

  template <class T>
  void fill(StepProblem<T>& problem, std::vector<StepLayer<T>>* layers) {
    for (int n = 0; n < 2; ++n) {
      layers[n].clear();
      for (Layer& from : networks_[n].layers) {
        StepLayer<T> to;
        to.kind = from.kind;
        to.in = from.in, to.out = from.out;
        to.activation = from.activation;
        to.weight = from.weight.trained<T>(), to.bias = from.bias.trained<T>();
        to.batch_statistics = from.batch_statistics;
        to.running_mean = pointer<T>(from.running_mean), to.running_var = pointer<T>(from.running_var);
        to.batches = pointer<int64_t>(from.batches);
        to.momentum = from.momentum, to.cumulative = from.cumulative, to.eps = from.eps;
        for (size_t half = 0; half < from.masks.size(); ++half) to.mask[half] = pointer<T>(from.masks[half]);
        to.keep_scale = from.drop < 1 ? 1 / (1 - from.drop) : 1;
        layers[n].push_back(to);
      }
    }
    problem.generator = {int(layers[0].size()), layers[0].data()};
    problem.discriminator = {int(layers[1].size()), layers[1].data()};
  }

  template <class T>
  void run(const Tensor& real, const Tensor& noise, const std::optional<Tensor>& labels,
           const std::vector<double>& hyperparameters, const std::vector<double>& losses, const Tensor& result) {
    const cpu::Context here;
    StepProblem<T> problem;
    std::vector<StepLayer<T>>* layers = layers_of(T());
    problem.batch = real.size(1), problem.classes = classes_;
    problem.real_target = losses[0], problem.fake_target = losses[1];
    problem.minimax = losses[2] != 0, problem.average_rate = losses[3];
    StepSums<T> sums{};
    double* seconds = timed_ ? seconds_ : nullptr;
    std::fill_n(seconds_, int(cpu::StepPhase::count), 0.0);
    const auto take_inputs = [&](int64_t i) {
      const auto rows = [&](const Tensor& t) {
        const int64_t k = std::min(i, t.size(0) - 1);
        return StridedRows<T>{data<T>(t) + k * t.stride(0), t.size(2), t.stride(1), t.stride(2)};
      };
      problem.real = rows(real), problem.noise = rows(noise);
      const int64_t k = std::min(i, d_steps_ - 1);
      problem.labels = classes_ > 0 ? data<int64_t>(*labels) + k * labels->stride(0) : nullptr;
    };
    for (int64_t i = 0; i < d_steps_; ++i) {
      draw_masks(0, 0, real, problem.batch);
      draw_masks(1, 0, real, problem.batch);
      draw_masks(1, 1, real, problem.batch);
      prepare(1, hyperparameters);
      fill(problem, layers);
      take_inputs(i);
      reserve(here, problem, real);
      discriminator_step(here, problem, workspace_.mutable_data_ptr(), &sums, seconds);
    }
    if (!reuse_fake_) draw_masks(0, 0, real, problem.batch);
    draw_masks(1, 0, real, problem.batch);
    prepare(0, hyperparameters);
    fill(problem, layers);
    take_inputs(d_steps_);
    generator_step(here, problem, workspace_.mutable_data_ptr(), !reuse_fake_, &sums, seconds);
    T* out = mutable_data<T>(result);
    out[0] = sums.d_loss, out[1] = sums.g_loss, out[2] = sums.real_score, out[3] = sums.fake_score;
  }

  // The steps of Adam that are due, of each parameter of a network.
  void prepare(int network, const std::vector<double>& hyperparameters) {
    networks_[network].for_parameters([&](Parameter& parameter) { parameter.prepare(hyperparameters); });
  }

  template <class T>
  void reserve(const cpu::Context& here, const StepProblem<T>& problem, const Tensor& like) {
    if (workspace_.defined() && workspace_batch_ == problem.batch && workspace_dtype_ == like.scalar_type()) return;
    workspace_ = Tensor();  // before the new one is made
    workspace_ = at::zeros({int64_t(step_workspace(here, problem))}, like.options().dtype(at::kByte));
    workspace_batch_ = problem.batch, workspace_dtype_ = like.scalar_type();
  }

  // Autograd must know that the tensors have changed, and gradients of before are gone, as after zero_grad.
  void after_update(double average_rate) {
    for (Network& network : networks_) {
      network.for_parameters([&](Parameter& parameter) { parameter.after_update(average_rate); });
      for (Layer& layer : network.layers)
        if (layer.batch_statistics)
          for (const Tensor& buffer : {layer.running_mean, layer.running_var, layer.batches}) bump_version(buffer);
    }
    for (auto& [average, buffer] : copied_) average.copy_(buffer);
  }

  std::vector<StepLayer<float>>* layers_of(float) { return float_layers_; }
  std::vector<StepLayer<double>>* layers_of(double) { return double_layers_; }

  const int64_t latent_, classes_, d_steps_;
  const bool reuse_fake_;
  Network networks_[2];
  std::vector<std::pair<Tensor, Tensor>> copied_;
  Tensor workspace_, noise_;
  int64_t workspace_batch_ = 0;
  at::ScalarType workspace_dtype_ = at::kFloat;
  std::vector<StepLayer<float>> float_layers_[2];  // kept, so that a step allocates nothing
  std::vector<StepLayer<double>> double_layers_[2];
  bool timed_ = false;
  double seconds_[int(cpu::StepPhase::count)] = {};
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.class_<StepEngine>("StepEngine")
      .def(torch::init<int64_t, int64_t, int64_t, bool>())
      .def("add_layer", &StepEngine::add_layer)
      .def("set_batch_norm", &StepEngine::set_batch_norm)
      .def("set_dropout", &StepEngine::set_dropout)
      .def("add_parameter", &StepEngine::add_parameter)
      .def("add_copied_buffer", &StepEngine::add_copied_buffer)
      .def("step", &StepEngine::step)
      .def("set_timed", &StepEngine::set_timed)
      .def("seconds", &StepEngine::seconds);
}

}  // namespace fastgan::bindings
