// StepEngine: a whole training step over the user's parameters and optimizer state, in place.
//
// Python describes the networks once (fastgan/engine.py) and binds the tensors; a step then reads their addresses and
// the optimizers' numbers, draws noise and masks as torch would, and calls the kernels of csrc/*/step.h. Nothing is
// allocated but the four statistics.
#ifndef FASTGAN_SIMT  // the engine's CUDA half is still to come
#include "step.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include "../cpu/step.h"
#include "common.h"
#include "scopes.h"
#include "step_parameter.h"
#include "watch.h"

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
  template <class F>
  void for_parameters(const F& f) const {
    const_cast<Network*>(this)->for_parameters([&](const Parameter& parameter) { f(parameter); });
  }
};

namespace py = pybind11;

Tensor tensor_of(const py::object& object) { return THPVariable_Unpack(object.ptr()); }
Tensor tensor_or_none(const py::object& object) { return object.is_none() ? Tensor() : tensor_of(object); }

// A 0-d tensor on one element of another. What at::select does takes 2 us where it has left the caches.
Tensor element(const Tensor& of, int64_t index) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(of.storage()), of.key_set(), of.dtype());
  impl->set_sizes_and_strides(at::IntArrayRef{}, at::IntArrayRef{}, index);
  return Tensor(std::move(impl));
}

class StepEngine {
 public:
  StepEngine(int64_t latent, int64_t data, int64_t classes, int64_t d_steps, bool reuse_fake, double real_target,
             double fake_target, bool minimax, double average_rate, int64_t least_batch, bool bf16)
      : latent_(latent),
        data_(data),
        classes_(classes),
        d_steps_(d_steps),
        reuse_fake_(reuse_fake),
        real_target_(real_target),
        fake_target_(fake_target),
        minimax_(minimax),
        average_rate_(average_rate),
        least_batch_(least_batch),
        bf16_(bf16) {
    TORCH_CHECK(!bf16 || cpu::has_bf16_step(), "StepEngine: bf16 needs a processor with AMX");
  }

  // Network 0 is the generator, 1 the discriminator.
  void add_layer(int64_t network, int64_t kind, int64_t in, int64_t out, int64_t activation, double negative_slope) {
    TORCH_CHECK(activation >= 0 && activation < int64_t(Activation::count), "no such activation: ", activation);
    Layer layer{};
    layer.kind = static_cast<LayerKind>(kind);
    layer.in = in, layer.out = out;
    layer.activation = {static_cast<Activation>(activation), negative_slope};
    networks_[network].layers.push_back(std::move(layer));
  }

  void set_batch_norm(int64_t network, const py::object& mean, const py::object& var, const py::object& batches,
                      bool batch_statistics, std::optional<double> momentum, double eps) {
    Layer& layer = networks_[network].layers.back();
    layer.running_mean = tensor_or_none(mean), layer.running_var = tensor_or_none(var);
    layer.batches = tensor_or_none(batches);
    layer.batch_statistics = batch_statistics;
    layer.cumulative = !momentum;
    layer.momentum = momentum.value_or(0);
    layer.eps = eps;
  }

  void set_dropout(int64_t network, double p) { networks_[network].layers.back().drop = p; }

  // Of the last layer added: its weight, then its bias. Group -1: frozen.
  void add_parameter(int64_t network, bool is_bias, const py::object& value, const py::object& average, int64_t group,
                     const std::vector<py::object>& state) {
    Layer& layer = networks_[network].layers.back();
    std::vector<Tensor> tensors;
    for (const py::object& object : state) tensors.push_back(tensor_of(object));
    (is_bias ? layer.bias : layer.weight) = Parameter(tensor_of(value), tensor_or_none(average), group, tensors);
  }

  // A buffer of the generator that its moving average takes over as it is.
  void add_copied_buffer(const py::object& average, const py::object& buffer) {
    copied_.emplace_back(tensor_of(average), tensor_of(buffer));
  }

  void watch_value(py::dict holder, py::str name, py::object value) {
    watch_.value(std::move(holder), std::move(name), std::move(value));
  }
  void watch_length(py::object sized, Py_ssize_t length) { watch_.length(std::move(sized), length); }
  void add_group(py::dict group, bool decoupled) { watch_.group(std::move(group), decoupled); }

  // Whether everything that the plan was made of is still in its place.
  bool is_current() const {
    bool current = watch_.is_current();
    for (const Network& network : networks_)
      network.for_parameters([&](const Parameter& parameter) { current = current && parameter.is_current(first()); });
    return current;
  }

  // One step. real is (batch, data) or (d_steps, batch, data), labels, where there are classes, (batch) or (d_steps,
  // batch), noise (rows, batch, latent) or None to draw it. Returns d_loss, g_loss, real_score, fake_score; or None,
  // and nothing is done, where the plan is out of date or the inputs are not such.
  py::object step(const py::object& real_object, const py::object& labels_object, const py::object& noise_object) {
    if (!THPVariable_Check(real_object.ptr())) return py::none();
    const bool has_labels = !labels_object.is_none(), has_noise = !noise_object.is_none();
    if (has_labels && !THPVariable_Check(labels_object.ptr())) return py::none();
    if (has_noise && !THPVariable_Check(noise_object.ptr())) return py::none();
    if (!is_current()) return py::none();
    const at::NoGradGuard no_grad;
    Tensor real = tensor_of(real_object), labels, noise;
    if (!expand(real, 3, first().scalar_type())) return py::none();
    if (real.size(2) != data_ || real.size(1) < least_batch_) return py::none();
    if (has_labels != (classes_ > 0)) return py::none();
    if (has_labels) {
      labels = tensor_of(labels_object);
      if (!expand(labels, 2, at::kLong) || labels.size(1) != real.size(1) || !are_labels(labels)) return py::none();
    }
    if (has_noise) {
      noise = tensor_of(noise_object);
      const int64_t rows = d_steps_ + (reuse_fake_ ? 0 : 1);
      if (noise.dim() != 3 || noise.size(0) != rows || noise.size(1) != real.size(1) || noise.size(2) != latent_ ||
          noise.scalar_type() != real.scalar_type() || noise.device() != real.device())
        return py::none();
    }
    if (at::autocast::is_autocast_enabled(real.device().type()) || c10::InferenceMode::is_enabled()) return py::none();
    watch_.hyperparameters(hyperparameters_);
    Tensor result;
    {
      const py::gil_scoped_release without_gil;
      at::internal::lazy_init_num_threads();
      if (!noise.defined()) noise = draw_noise(real);
      result = at::empty({4}, real.options());
      if (real.scalar_type() == at::kDouble)
        run<double>(real, noise, labels, result);
      else
        run<float>(real, noise, labels, result);
      after_update();
    }
    py::tuple statistics(4);
    for (int64_t i = 0; i < 4; ++i)
      statistics[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(element(result, i)));
    return statistics;
  }

  // Of the last step, with seconds of each phase, in the order of csrc/cpu/step.h; to be asked for before it.
  void set_timed(bool timed) { timed_ = timed; }
  std::vector<double> seconds() const { return std::vector<double>(seconds_, seconds_ + int(cpu::StepPhase::count)); }

 private:
  // A tensor of the plan's dtype and device.
  const Tensor& first() const {
    for (const Layer& layer : networks_[0].layers)
      if (layer.weight.value.defined()) return layer.weight.value;
    TORCH_INTERNAL_ASSERT(false, "the generator has no parameter");
  }

  // One entry a D step in front, where there is one for all; or false.
  bool expand(Tensor& tensor, int64_t dimensions, at::ScalarType dtype) const {
    if (tensor.scalar_type() != dtype || tensor.device() != first().device() || tensor.layout() != at::kStrided)
      return false;
    if (tensor.dim() == dimensions - 1) tensor = tensor.unsqueeze(0);
    if (tensor.dim() != dimensions || tensor.numel() == 0) return false;
    return tensor.size(0) == d_steps_ || tensor.size(0) == 1;
  }

  bool are_labels(const Tensor& labels) const {
    if (labels.stride(1) != 1) return false;
    for (int64_t i = 0; i < labels.size(0); ++i) {
      const int64_t* label = data<int64_t>(labels) + i * labels.stride(0);
      for (int64_t k = 0; k < labels.size(1); ++k)
        if (label[k] < 0 || label[k] >= classes_) return false;
    }
    return true;
  }

  Tensor draw_noise(const Tensor& real) {
    const int64_t rows = d_steps_ + (reuse_fake_ ? 0 : 1);
    if (!noise_.defined() || noise_.size(1) != real.size(1))
      noise_ = at::empty({rows, real.size(1), latent_}, real.options());
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
  void run(const Tensor& real, const Tensor& noise, const Tensor& labels, const Tensor& result) {
    const cpu::Context here;
    StepProblem<T> problem;
    std::vector<StepLayer<T>>* layers = layers_of(T());
    problem.batch = real.size(1), problem.classes = classes_;
    problem.real_target = real_target_, problem.fake_target = fake_target_;
    problem.minimax = minimax_, problem.average_rate = average_rate_;
    problem.bf16 = bf16_;
    StepSums<T> sums{};
    double* seconds = timed_ ? seconds_ : nullptr;
    std::fill_n(seconds_, int(cpu::StepPhase::count), 0.0);
    const auto take_inputs = [&](int64_t i) {
      const auto rows = [&](const Tensor& t) {
        const int64_t k = std::min(i, t.size(0) - 1);
        return StridedRows<T>{data<T>(t) + k * t.stride(0), t.size(2), t.stride(1), t.stride(2)};
      };
      problem.real = rows(real), problem.noise = rows(noise);
      const int64_t k = classes_ > 0 ? std::min(i, labels.size(0) - 1) : 0;
      problem.labels = classes_ > 0 ? data<int64_t>(labels) + k * labels.stride(0) : nullptr;
    };
    for (int64_t i = 0; i < d_steps_; ++i) {
      draw_masks(0, 0, real, problem.batch);
      draw_masks(1, 0, real, problem.batch);
      draw_masks(1, 1, real, problem.batch);
      prepare(1);
      fill(problem, layers);
      take_inputs(i);
      reserve(here, problem, real);
      discriminator_step(here, problem, workspace_.mutable_data_ptr(), &sums, seconds);
    }
    if (!reuse_fake_) draw_masks(0, 0, real, problem.batch);
    draw_masks(1, 0, real, problem.batch);
    prepare(0);
    fill(problem, layers);
    take_inputs(d_steps_);
    generator_step(here, problem, workspace_.mutable_data_ptr(), !reuse_fake_, &sums, seconds);
    T* out = mutable_data<T>(result);
    out[0] = sums.d_loss, out[1] = sums.g_loss, out[2] = sums.real_score, out[3] = sums.fake_score;
  }

  // The steps of Adam that are due, of each parameter of a network.
  void prepare(int network) {
    const Parameter* before = nullptr;
    networks_[network].for_parameters([&](Parameter& parameter) {
      parameter.prepare(hyperparameters_, before);
      before = &parameter;
    });
  }

  template <class T>
  void reserve(const cpu::Context& here, const StepProblem<T>& problem, const Tensor& like) {
    if (workspace_.defined() && workspace_batch_ == problem.batch && workspace_dtype_ == like.scalar_type()) return;
    workspace_ = Tensor();  // before the new one is made
    workspace_ = at::zeros({int64_t(step_workspace(here, problem))}, like.options().dtype(at::kByte));
    workspace_batch_ = problem.batch, workspace_dtype_ = like.scalar_type();
  }

  // Autograd must know that the tensors have changed, and gradients of before are gone, as after zero_grad.
  void after_update() {
    for (Network& network : networks_) {
      network.for_parameters([&](Parameter& parameter) { parameter.after_update(average_rate_); });
      for (Layer& layer : network.layers)
        if (layer.batch_statistics)
          for (const Tensor& buffer : {layer.running_mean, layer.running_var, layer.batches}) bump_version(buffer);
    }
    for (auto& [average, buffer] : copied_) average.copy_(buffer);
  }

  std::vector<StepLayer<float>>* layers_of(float) { return float_layers_; }
  std::vector<StepLayer<double>>* layers_of(double) { return double_layers_; }

  const int64_t latent_, data_, classes_, d_steps_;
  const bool reuse_fake_;
  const double real_target_, fake_target_;
  const bool minimax_;
  const double average_rate_;
  const int64_t least_batch_;
  const bool bf16_;
  Watch watch_;
  std::vector<double> hyperparameters_;
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

void register_step_engine(py::module_& m) {
  m.def("has_bf16_step", cpu::has_bf16_step, "Whether the engine has products of bfloat16 on this processor (AMX).");
  py::class_<StepEngine>(m, "StepEngine", "A whole training step; see fastgan/engine.py, which makes it.")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, bool, double, double, bool, double, int64_t, bool>(),
           py::arg("latent"), py::arg("data"), py::arg("classes"), py::arg("d_steps"), py::arg("reuse_fake"),
           py::arg("real_target"), py::arg("fake_target"), py::arg("minimax"), py::arg("average_rate"),
           py::arg("least_batch"), py::arg("bf16"))
      .def("add_layer", &StepEngine::add_layer)
      .def("set_batch_norm", &StepEngine::set_batch_norm)
      .def("set_dropout", &StepEngine::set_dropout)
      .def("add_parameter", &StepEngine::add_parameter)
      .def("add_copied_buffer", &StepEngine::add_copied_buffer)
      .def("watch_value", &StepEngine::watch_value)
      .def("watch_length", &StepEngine::watch_length)
      .def("add_group", &StepEngine::add_group)
      .def("is_current", &StepEngine::is_current)
      .def("step", &StepEngine::step)
      .def("set_timed", &StepEngine::set_timed)
      .def("seconds", &StepEngine::seconds);
}

}  // namespace fastgan::bindings
#endif
