// StepEngine: a whole training step over the user's parameters and optimizer state, in place.
//
// Python describes the networks once (fastgan/engine.py) and binds the tensors; a step then reads their addresses and
// the optimizers' numbers, draws noise and masks as torch would, and calls the kernels of csrc/*/step.h. Nothing is
// allocated but the four statistics.
#pragma once

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/TracerMode.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/anomaly_mode.h>
#include <torch/csrc/autograd/python_variable.h>

#include "../core/names.h"
#include "common.h"
#include "layer_path.h"
#include "scopes.h"
#include "step_choice.h"
#include "step_networks.h"
#include "watch.h"
#ifndef FASTGAN_SIMT
#include "step_cpu.h"
#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "step_cuda.h"
#endif

namespace fastgan::bindings {

namespace py = pybind11;

inline LayerKind layer_kind_named(const std::string& name) {
  for (size_t i = 0; i < std::size(layer_kind_names); ++i)
    if (name == layer_kind_names[i]) return static_cast<LayerKind>(i);
  TORCH_CHECK(false, "the engine has no kind of layer called ", name);
}

inline GanLoss loss_named(const std::string& name) {
  const std::optional<GanLoss> loss = gan_loss_named(name);
  TORCH_CHECK(loss, "the engine has no loss called ", name);
  return *loss;
}

// Autograd refuses the tensors of inference mode.
inline bool is_trainable(const Tensor& t) { return is_plain(t) && !t.is_inference(); }

// A 0-d tensor on one element of another. What at::select does takes 2 us where it has left the caches.
inline Tensor element(const Tensor& of, int64_t index) {
  auto impl = c10::make_intrusive<c10::TensorImpl>(c10::Storage(of.storage()), of.key_set(), of.dtype());
  impl->set_sizes_and_strides(at::IntArrayRef{}, at::IntArrayRef{}, index);
  return Tensor(std::move(impl));
}

// Whether autograd and torch's functions would do here what they do by themselves: no mode that sees or changes them.
// The mode of torch.device(...) and torch.set_default_device only chooses where new tensors lie.
inline bool is_usual_mode(const at::Device& device, PyObject* device_mode) {
  if (!at::GradMode::is_enabled() || c10::InferenceMode::is_enabled() || torch::autograd::AnomalyMode::is_enabled() ||
      at::autocast::is_autocast_enabled(device.type()) || at::tracer::impl::is_dispatch_enabled() ||
      c10::impl::TorchDispatchModeTLS::any_modes_set() || !at::SavedTensorDefaultHooks::get_tls_state().stack.empty() ||
      c10::impl::tls_local_dispatch_key_set().included_.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode))
    return false;
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    PyObject* mode = at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (reinterpret_cast<PyObject*>(Py_TYPE(mode)) != device_mode) return false;
  }
  return true;
}

class StepEngine {
 public:
  // device_mode: the class of torch.device's mode.
  StepEngine(const StepSettings& settings, std::shared_ptr<Watch> watch, py::object device_mode)
      : settings_(settings), watch_(std::move(watch)), device_mode_(std::move(device_mode)) {}

  // Network 0 is the generator, 1 the discriminator.
  void add_layer(int64_t network, const std::string& kind, int64_t in, int64_t out, const std::string& activation,
                 double negative_slope) {
    const std::optional<Activation> known = activation_named(activation);
    TORCH_CHECK(known, "the engine has no activation called ", activation);
    Layer layer{};
    layer.kind = layer_kind_named(kind);
    layer.in = in, layer.out = out;
    layer.activation = {*known, negative_slope};
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

  // Of the last layer added, which is without an activation: widths and kinds of its segments, kinds by number.
  void set_segments(int64_t network, const std::vector<int64_t>& widths, const std::vector<int64_t>& kinds,
                    double tau) {
    Layer& layer = tensors_.networks[network].layers.back();
    layer.segments = std::make_shared<SegmentList>("StepEngine", widths, kinds, tau);
    TORCH_CHECK(network == generator_index && layer.kind == LayerKind::segmented &&
                    layer.segments->get().columns == layer.out && layer.activation.activation == Activation::identity,
                "the engine has segments in a generator alone, as a layer of their width");
  }

  // draws_bits: whether its masks need not be those that torch would draw.
  void set_dropout(int64_t network, double p, bool draws_bits) {
    Layer& layer = tensors_.networks[network].layers.back();
    layer.drop = p, layer.draws_bits = draws_bits;
  }

  // Of the last layer added: its weight, then its bias. Without a group it is frozen, or in no optimizer.
  void add_parameter(int64_t network, bool is_bias, const py::object& value, const py::object& average,
                     bool is_in_optimizer, std::optional<int64_t> group, const py::dict& state) {
    Layer& layer = tensors_.networks[network].layers.back();
    (is_bias ? layer.bias : layer.weight) = Parameter(value, average, is_in_optimizer, group, state);
  }

  // A buffer of the generator that its moving average takes over as it is.
  void add_copied_buffer(const py::object& average, const py::object& buffer) {
    copied_.emplace_back(tensor_of(average), tensor_of(buffer));
  }

  // Of the optimizers' groups; its learning rate where that is a tensor beside the parameters, else None.
  void add_group(py::dict group, bool decoupled, const py::object& learning_rate) {
    learning_rates_.push_back(is_on_cuda() ? tensor_or_none(learning_rate) : Tensor());
    watch_->group(std::move(group), decoupled, learning_rates_.back().defined());
  }

  // One step. real is (batch, data) or (d_steps, batch, data), labels, where there are classes, (batch) or (d_steps,
  // batch), noise (rows, batch, latent) or None to draw it. Returns d_loss, g_loss, real_score, fake_score; or None,
  // and nothing is done, where the plan is out of date, the inputs are not such, or the choice for this size of batch
  // is another way; or False, and nothing is done, where `asks` and there is no choice yet.
  py::object step(const py::object& real, const py::object& labels, const py::object& noise, bool asks, bool due,
                  double noise_scale) {
    const Running running(is_running_, "TrainStep");
    const Holding holding(tensors_);
    StepInputs inputs;
    inputs.penalties_are_due = due, inputs.noise_scale = noise_scale;
    if (!take_inputs_of_step(real, labels, noise, inputs)) return py::none();
    const at::NoGradGuard no_grad;
    return run(inputs, asks, noise.is_none(), {0, 1, 2, 3});
  }

  // Whether `step` of such inputs would take its step, but for a choice of another way.
  bool accepts(const py::object& real, const py::object& labels, const py::object& noise) {
    const Running running(is_running_, "TrainStep");
    const Holding holding(tensors_);
    StepInputs inputs;
    return take_inputs_of_step(real, labels, noise, inputs) && watch_->hyperparameters(groups_);
  }

  // The half of D alone: real and fake are (batch, data), of as many samples or different ones, labels (batch) each,
  // those of the fakes None where the labels of the real samples serve. Returns d_loss, penalty, real_score,
  // fake_score; or None or False as `step`.
  py::object step_discriminator(const py::object& real, const py::object& fake, const py::object& labels,
                                const py::object& fake_labels, bool asks, bool due) {
    const Running running(is_running_, "DiscriminatorStep");
    const Holding holding(tensors_);
    StepInputs inputs;
    inputs.penalties_are_due = due;
    if (!take_inputs_of_discriminator(real, fake, labels, fake_labels, inputs)) return py::none();
    const at::NoGradGuard no_grad;
    return run(inputs, asks, false, {0, 4, 2, 3});
  }

  // As `accepts`, of `step_discriminator`.
  bool accepts_discriminator(const py::object& real, const py::object& fake, const py::object& labels,
                             const py::object& fake_labels, bool) {
    const Running running(is_running_, "DiscriminatorStep");
    const Holding holding(tensors_);
    StepInputs inputs;
    return take_inputs_of_discriminator(real, fake, labels, fake_labels, inputs) && watch_->hyperparameters(groups_);
  }

#ifndef FASTGAN_SIMT
  // So many processes take each step together; begin_sum(tensor) begins to put the sum over all of them in its place,
  // and returns what waits for it. It gets gradients in parts of at least so many bytes. Where the processes share
  // memory, sums are taken there, after meet().
  void set_exchange(py::object begin_sum, py::object meet, int64_t processes, std::shared_ptr<cpu::SharedGroup> shared,
                    size_t part_bytes) {
    TORCH_CHECK(!is_on_cuda(), "the engine has steps of several processes on the CPU alone");
    cpu_.processes = processes, cpu_.part_bytes = part_bytes;
    cpu_.shared = std::move(shared);
    begin_sum_ = std::move(begin_sum), meet_ = std::move(meet);
    cpu_.exchange = [this](const Tensor& values) -> std::function<void()> {
      const py::gil_scoped_acquire gil;
      // What is left of it is let go where Python's lock is not held.
      const auto let_go = [](py::object* object) {
        const py::gil_scoped_acquire gil;
        delete object;
      };
      std::shared_ptr<py::object> wait(
          new py::object(begin_sum_(py::reinterpret_steal<py::object>(THPVariable_Wrap(values)))), let_go);
      return [wait] {
        const py::gil_scoped_acquire gil;
        (*wait)();
      };
    };
    cpu_.meet = [this] {
      const py::gil_scoped_acquire gil;
      meet_();
    };
  }
#endif

  // What a step of such a batch, and such a rounding of float products, is to take; a later choice replaces a former.
  void set_choice(int64_t batch, bool tf32, const StepChoice& choice) { choices_.set(batch, tf32, choice); }

  // Whether float products are rounded to tf32 now.
  bool rounds_to_tf32() const { return is_on_cuda() && !settings_.bf16 && allow_tf32(); }
  // Of the last step that was launched, not replayed: whether networks that fit took the narrow kernels, and whether
  // each product that was a launch of its own was the library's.
  py::tuple taken() const {
    py::dict products;
    bool narrow = false;
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
    narrow = cuda_.was_narrow();
    for (const auto& [key, by_library] : cuda_.taken())
      products[py::make_tuple(key[0], key[1], key[2], key[3])] = by_library;
#endif
    return py::make_tuple(narrow, products);
  }

#ifndef FASTGAN_SIMT
  // Of the last step, the seconds of each phase by its name, in the order of the work; to be asked for before it.
  void set_timed(bool timed) { timed_ = timed; }
  py::dict seconds() const {
    py::dict by_name;
    for (int i = 0; i < cpu::step_phase_count; ++i) by_name[cpu::step_phase_names[i]] = seconds_[i];
    return by_name;
  }
#endif

  // Whether it runs on the kernels of csrc/cuda/; in the test build those run on the CPU.
  bool is_on_cuda() const {
#ifdef FASTGAN_SIMT
    return true;
#else
    // Asked first while the parameters are at hand, which between two steps they are not.
    if (!on_cuda_) on_cuda_ = first().device().is_cuda();
    return *on_cuda_;
#endif
  }

 private:
  // The parameters and averages, for the length of a step; between two they are the user's alone.
  struct Holding {
    explicit Holding(StepNetworks& tensors) : tensors(tensors) { each(&Parameter::hold); }
    ~Holding() { each(&Parameter::let_go); }
    void each(void (Parameter::*f)()) {
      for (Network& network : tensors.networks) network.for_parameters([&](Parameter& parameter) { (parameter.*f)(); });
    }
    StepNetworks& tensors;
  };

  // One step at a time: others run while this one has let Python's lock go.
  struct Running {
    Running(bool& flag, const char* of) : flag(flag) {
      if (flag)
        throw std::runtime_error(std::string("another thread is in this ") + of + "; a step is one thread's at a time");
      flag = true;
    }
    ~Running() { flag = false; }
    bool& flag;
  };

  const Tensor& first() const { return tensors_.first(); }

  // Whether the plan and the process are as they were when it was made.
  bool is_current_here() {
    if (!watch_->is_current() || !is_usual_mode(first().device(), device_mode_.ptr())) return false;
    check_labels_before();
    return true;
  }

  // The inputs of `step`, where the plan is current and they are such.
  bool take_inputs_of_step(const py::object& real, const py::object& labels, const py::object& noise,
                           StepInputs& inputs) {
    if (!is_current_here()) return false;
    const at::NoGradGuard no_grad;
    if (!take_data(real, labels, inputs.real, inputs.labels)) return false;
    if (noise.is_none()) return true;
    if (!is_input(noise, inputs.real.scalar_type(), inputs.noise)) return false;
    if (inputs.noise.dim() != 3 || inputs.noise.size(0) != settings_.rows_of_noise() ||
        inputs.noise.size(1) != inputs.batch() || inputs.noise.size(2) != settings_.latent)
      return false;
    return !has_odd_mask(generator_index, inputs.noise);
  }

  // Likewise of `step_discriminator`.
  bool take_inputs_of_discriminator(const py::object& real, const py::object& fake, const py::object& labels,
                                    const py::object& fake_labels, StepInputs& inputs) {
    if (!is_current_here()) return false;
    const at::NoGradGuard no_grad;
    const auto is_of = [](const py::object& object, int64_t dimensions) {
      return object.is_none() || !THPVariable_Check(object.ptr()) ||
             THPVariable_Unpack(object.ptr()).dim() == dimensions;
    };
    if (!is_of(real, 2) || !is_of(fake, 2) || !is_of(labels, 1) || !is_of(fake_labels, 1)) return false;
    if (!take_data(real, labels, inputs.real, inputs.labels)) return false;
    if (!take_data(fake, fake_labels.is_none() ? labels : fake_labels, inputs.fake, inputs.fake_labels)) return false;
    return inputs.batch() == inputs.fake_batch() || !(settings_.loss.is_paired || settings_.penalties.gp > 0);
  }

  // Real data or fakes, and their labels, if they are such as the kernels read.
  bool take_data(const py::object& rows_object, const py::object& labels_object, Tensor& rows, Tensor& labels) const {
    if (labels_object.is_none() != (settings_.classes == 0)) return false;
    if (!take(rows_object, 3, first().scalar_type(), rows)) return false;
    const int64_t batch = rows.size(1);
    if (rows.size(2) != settings_.data || batch < settings_.least_batch || batch % settings_.pac != 0) return false;
    if (settings_.classes > 0 &&
        (!take(labels_object, 2, at::kLong, labels) || labels.size(1) != batch || !are_labels(labels)))
      return false;
    return !has_odd_mask(discriminator_index, rows);
  }

  // A step, and of its five sums the four statistics.
  py::object run(StepInputs& inputs, bool asks, bool draws, const std::array<int64_t, 4>& wanted) {
    const Tensor& real = inputs.real;
    const StepChoice* choice = nullptr;
    if (layer_path() == LayerPath::automatic) {
      choice = choices_.of(real.size(1), rounds_to_tf32());
      if (choice == nullptr && asks) return py::bool_(false);
      if (choice != nullptr && choice->composed) return py::none();
    }
    if (!watch_->hyperparameters(groups_)) return py::none();
    Tensor result;
    {
      const py::gil_scoped_release without_gil;
      at::internal::lazy_init_num_threads();
      if (draws) {
        if (!noise_.defined() || noise_.size(1) != real.size(1))
          noise_ = at::empty({settings_.rows_of_noise(), real.size(1), settings_.latent}, real.options());
        inputs.noise = noise_;
      }
      result = at::empty({5}, real.options());
      if (real.scalar_type() == at::kDouble)
        run_as<double>(inputs, draws, choice, result);
      else if (real.scalar_type() == at::kFloat)
        run_as<float>(inputs, draws, choice, result);
      else
        TORCH_CHECK(false, "the engine has no step of ", real.scalar_type());
      after_update();
    }
    py::tuple statistics(4);
    for (size_t i = 0; i < wanted.size(); ++i)
      statistics[i] = py::reinterpret_steal<py::object>(THPVariable_Wrap(element(result, wanted[i])));
    return statistics;
  }

  // Whether an object is a tensor that the kernels can read while they write the parameters.
  bool is_input(const py::object& object, at::ScalarType dtype, Tensor& tensor) const {
    if (!THPVariable_CheckExact(object.ptr())) return false;
    tensor = THPVariable_Unpack(object.ptr());
    return is_trainable(tensor) && tensor.scalar_type() == dtype && tensor.device() == first().device() &&
           tensor.numel() != 0 && !tensor._fw_grad(/*level=*/0).defined() && !watch_->touches(tensor);
  }

  // Such a tensor with one entry a D step in front, or one for all where it came without.
  bool take(const py::object& object, int64_t dimensions, at::ScalarType dtype, Tensor& tensor) const {
    if (!is_input(object, dtype, tensor)) return false;
    if (tensor.dim() == dimensions - 1) {
      tensor = tensor.unsqueeze(0);
      return true;
    }
    return tensor.dim() == dimensions && tensor.size(0) == settings_.d_steps;
  }

  // Whether a network has a dropout on its own input, and that lies otherwise than row by row: torch draws the mask in
  // the order of the input's memory.
  bool has_odd_mask(int network, const Tensor& input) const {
    if (settings_.classes > 0 || settings_.pac > 1) return false;  // it is put together in memory of its own
    for (const Layer& layer : tensors_.networks[network].layers) {
      switch (layer.kind) {
        case LayerKind::linear:
        case LayerKind::segmented:
          return false;
        case LayerKind::dropout:
          if (layer.drop > 0) return !input.select(0, 0).is_contiguous();
          break;
        case LayerKind::batch_norm:
        case LayerKind::identity:
          break;
      }
    }
    return false;
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

  // Of steps on a device that are done by now.
  void check_labels_before() {
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
    const std::optional<int64_t> label = cuda_.odd_label();
    TORCH_CHECK_VALUE(!label, "labels must be in [0, ", settings_.classes, "), but those of an earlier step held ",
                      *label, ". That step took the sample as one of no class, and its statistics are NaN.");
#endif
  }

  template <class T>
  void run_as(const StepInputs& inputs, bool draws, const StepChoice* choice, const Tensor& result) {
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
    if (is_on_cuda()) return cuda_.run<T>(settings_, inputs, groups_, learning_rates_, draws, choice, result);
#endif
#ifndef FASTGAN_SIMT
    if (draws) tensors_.draw(noise_);
    std::fill_n(seconds_, cpu::step_phase_count, 0.0);
    cpu_.seconds = timed_ ? seconds_ : nullptr;
    cpu_.run<T>(settings_, inputs, groups_, result);
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

  bool is_running_ = false;
  const StepSettings settings_;
  const std::shared_ptr<Watch> watch_;
  const py::object device_mode_;
  std::vector<AdamGroup> groups_;
  std::vector<Tensor> learning_rates_;  // of each group: where it is a tensor on the device, else undefined
  StepNetworks tensors_;
  std::vector<std::pair<Tensor, Tensor>> copied_;
  Tensor noise_;
  StepChoices choices_;
  mutable std::optional<bool> on_cuda_;
#ifndef FASTGAN_SIMT
  CpuStep cpu_{tensors_};
  py::object begin_sum_, meet_;
  bool timed_ = false;
  double seconds_[cpu::step_phase_count] = {};
#endif
#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
  CudaStep cuda_{tensors_};
#endif
};

}  // namespace fastgan::bindings
