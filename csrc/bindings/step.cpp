// StepEngine: a whole training step over the user's parameters and optimizer state, in place.
//
// Python describes the networks once (fastgan/engine.py) and binds the tensors; a step then reads their addresses and
// the optimizers' numbers, draws noise and masks as torch would, and calls the kernels of csrc/*/step.h. Nothing is
// allocated but the four statistics.
#include "step.h"

#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include "common.h"
#include "scopes.h"
#include "step_networks.h"
#include "watch.h"
#ifndef FASTGAN_SIMT
#include "step_cpu.h"
#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "step_cuda.h"
#endif

namespace fastgan::bindings {

namespace {

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
  explicit StepEngine(const StepSettings& settings) : settings_(settings) {}

  // Network 0 is the generator, 1 the discriminator.
  void add_layer(int64_t network, int64_t kind, int64_t in, int64_t out, int64_t activation, double negative_slope) {
    TORCH_CHECK(activation >= 0 && activation < int64_t(Activation::count), "no such activation: ", activation);
    Layer layer{};
    layer.kind = static_cast<LayerKind>(kind);
    layer.in = in, layer.out = out;
    layer.activation = {static_cast<Activation>(activation), negative_slope};
    tensors_.networks[network].layers.push_back(std::move(layer));
  }

  void set_batch_norm(int64_t network, const py::object& mean, const py::object& var, const py::object& batches,
                      bool batch_statistics, std::optional<double> momentum, double eps) {
    Layer& layer = tensors_.networks[network].layers.back();
    layer.running_mean = tensor_or_none(mean), layer.running_var = tensor_or_none(var);
    layer.batches = tensor_or_none(batches);
    layer.batch_statistics = batch_statistics;
    layer.cumulative = !momentum;
    layer.momentum = momentum.value_or(0);
    layer.eps = eps;
  }

  void set_dropout(int64_t network, double p) { tensors_.networks[network].layers.back().drop = p; }

  // Of the last layer added: its weight, then its bias. Group -1: frozen.
  void add_parameter(int64_t network, bool is_bias, const py::object& value, const py::object& average, int64_t group,
                     const std::vector<py::object>& state) {
    Layer& layer = tensors_.networks[network].layers.back();
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
  // Of the optimizers' groups; its learning rate where that is a tensor beside the parameters, else None.
  void add_group(py::dict group, bool decoupled, const py::object& learning_rate) {
    learning_rates_.push_back(is_on_cuda() ? tensor_or_none(learning_rate) : Tensor());
    watch_.group(std::move(group), decoupled, learning_rates_.back().defined());
  }

  // Whether everything that the plan was made of is still in its place.
  bool is_current() const {
    bool current = watch_.is_current();
    for (const Network& network : tensors_.networks)
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
    if (real.size(2) != settings_.data || real.size(1) < settings_.least_batch) return py::none();
    if (has_labels != (settings_.classes > 0)) return py::none();
    if (has_labels) {
      labels = tensor_of(labels_object);
      if (!expand(labels, 2, at::kLong) || labels.size(1) != real.size(1) || !are_labels(labels)) return py::none();
    }
    if (has_noise) {
      noise = tensor_of(noise_object);
      if (noise.dim() != 3 || noise.size(0) != settings_.rows_of_noise() || noise.size(1) != real.size(1) ||
          noise.size(2) != settings_.latent || noise.scalar_type() != real.scalar_type() ||
          noise.device() != real.device())
        return py::none();
    }
    if (at::autocast::is_autocast_enabled(real.device().type()) || c10::InferenceMode::is_enabled()) return py::none();
    watch_.hyperparameters(hyperparameters_);
    Tensor result;
    {
      const py::gil_scoped_release without_gil;
      at::internal::lazy_init_num_threads();
      if (!has_noise) {
        if (!noise_.defined() || noise_.size(1) != real.size(1))
          noise_ = at::empty({settings_.rows_of_noise(), real.size(1), settings_.latent}, real.options());
        noise = noise_;
      }
      result = at::empty({4}, real.options());
      const StepInputs inputs{real, noise, labels};
      if (real.scalar_type() == at::kDouble)
        run<double>(inputs, !has_noise, result);
      else
        run<float>(inputs, !has_noise, result);
      after_update();
    }
    py::tuple statistics(4);
    for (int64_t i = 0; i < 4; ++i)
      statistics[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(element(result, i)));
    return statistics;
  }

#ifndef FASTGAN_SIMT
  // Of the last step, with seconds of each phase, in the order of csrc/cpu/step.h; to be asked for before it.
  void set_timed(bool timed) { timed_ = timed; }
  std::vector<double> seconds() const { return std::vector<double>(seconds_, seconds_ + int(cpu::StepPhase::count)); }
#endif

  // Whether it runs on the kernels of csrc/cuda/; in the test build those run on the CPU.
  bool is_on_cuda() const {
#ifdef FASTGAN_SIMT
    return true;
#else
    return first().device().is_cuda();
#endif
  }

 private:
  const Tensor& first() const { return tensors_.first(); }

  // One entry a D step in front, where there is one for all; or false.
  bool expand(Tensor& tensor, int64_t dimensions, at::ScalarType dtype) const {
    if (tensor.scalar_type() != dtype || tensor.device() != first().device() || tensor.layout() != at::kStrided)
      return false;
    if (tensor.dim() == dimensions - 1) tensor = tensor.unsqueeze(0);
    if (tensor.dim() != dimensions || tensor.numel() == 0) return false;
    return tensor.size(0) == settings_.d_steps || tensor.size(0) == 1;
  }

  // On a device they are looked at there.
  bool are_labels(const Tensor& labels) const {
    if (labels.stride(1) != 1) return false;
    for (int64_t i = 0; labels.is_cpu() && i < labels.size(0); ++i) {
      const int64_t* label = data<int64_t>(labels) + i * labels.stride(0);
      for (int64_t k = 0; k < labels.size(1); ++k)
        if (label[k] < 0 || label[k] >= settings_.classes) return false;
    }
    return true;
  }

  template <class T>
  void run(const StepInputs& inputs, bool draws, const Tensor& result) {
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
    if (is_on_cuda()) return cuda_.run<T>(settings_, inputs, hyperparameters_, learning_rates_, draws, result);
#endif
#ifndef FASTGAN_SIMT
    if (draws) inputs.noise.normal_();
    std::fill_n(seconds_, int(cpu::StepPhase::count), 0.0);
    cpu_.seconds = timed_ ? seconds_ : nullptr;
    cpu_.run<T>(settings_, inputs, hyperparameters_, result);
#endif
  }

  // Autograd must know that the tensors have changed, and gradients of before are gone, as after zero_grad.
  void after_update() {
    for (Network& network : tensors_.networks) {
      network.for_parameters([&](Parameter& parameter) { parameter.after_update(settings_.average_rate); });
      for (Layer& layer : network.layers)
        if (layer.batch_statistics)
          for (const Tensor& buffer : {layer.running_mean, layer.running_var, layer.batches}) bump_version(buffer);
    }
    for (auto& [average, buffer] : copied_) average.copy_(buffer);
  }

  const StepSettings settings_;
  Watch watch_;
  std::vector<double> hyperparameters_;
  std::vector<Tensor> learning_rates_;  // of each group: where it is a tensor on the device, else undefined
  StepNetworks tensors_;
  std::vector<std::pair<Tensor, Tensor>> copied_;
  Tensor noise_;
#ifndef FASTGAN_SIMT
  CpuStep cpu_{tensors_};
  bool timed_ = false;
  double seconds_[int(cpu::StepPhase::count)] = {};
#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
  CudaStep cuda_{tensors_};
#endif
};

}  // namespace

void register_step_engine(py::module_& m) {
#ifdef FASTGAN_SIMT
  m.def("has_bf16_step", [](bool) { return true; });
#else
  m.def(
      "has_bf16_step", [](bool on_cpu) { return !on_cpu || cpu::has_bf16_step(); }, py::arg("on_cpu"),
      "Whether the engine has products of bfloat16: on a CPU those of AMX.");
#endif
  py::class_<StepEngine>(m, "StepEngine", py::module_local(),
                         "A whole training step; see fastgan/engine.py, which makes it.")
      .def(py::init([](int64_t latent, int64_t data, int64_t classes, int64_t d_steps, bool reuse_fake,
                       double real_target, double fake_target, bool minimax, double average_rate, int64_t least_batch,
                       bool bf16) {
             return std::make_unique<StepEngine>(StepSettings{latent, data, classes, d_steps, reuse_fake, real_target,
                                                              fake_target, minimax, average_rate, least_batch, bf16});
           }),
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
#ifndef FASTGAN_SIMT
      .def("set_timed", &StepEngine::set_timed)
      .def("seconds", &StepEngine::seconds)
#endif
      .def("step", &StepEngine::step);
}

}  // namespace fastgan::bindings
