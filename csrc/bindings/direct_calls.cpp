#include "direct_calls.h"

#ifndef FASTGAN_SIMT

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/Dtype.h>
#include <torch/csrc/autograd/python_variable.h>

#include <array>
#include <cmath>
#include <map>

#include "../core/activation.h"
#include "../core/gan_losses.h"
#include "mlp.h"
#include "verified.h"
#include "watch.h"

namespace py = pybind11;

namespace fastgan::bindings {

namespace {

PyObject* item(PyObject* dict, PyObject* name) { return PyDict_GetItemWithError(dict, name); }

PyObject* interned(py::handle name) {
  PyObject* object = name.inc_ref().ptr();
  PyUnicode_InternInPlace(&object);
  return object;
}

// A module's __dict__ and what it keeps there, where calling the module runs its class's own forward and nothing else.
struct ModuleDict {
  PyObject *dict = nullptr, *parameters = nullptr, *buffers = nullptr, *modules = nullptr;

  bool holds_nothing() const { return PyDict_GET_SIZE(parameters) == 0 && PyDict_GET_SIZE(buffers) == 0; }
};

// Holds modules to the list of fastgan/layers.py: its is_unpatched is asked of a class whenever something was assigned
// to it or to a base of it, an instance has none of the names `absent` and none of the hooks.
class LayerList {
 public:
  // functions: (namespace, name, function) of those that the layers' forwards call; global_hooks: (namespace, name) of
  // the dicts of hooks of all modules.
  LayerList(py::object is_unpatched, const py::iterable& absent, const py::iterable& hooks,
            const py::iterable& functions, const py::iterable& global_hooks)
      : is_unpatched_(std::move(is_unpatched)) {
    for (const py::handle function : functions) {
      const auto of = py::cast<py::tuple>(function);
      functions_.push_back({of[0].cast<py::dict>(), interned(of[1]), of[2].cast<py::object>()});
    }
    for (const py::handle hooks_of_all : global_hooks) {
      const auto of = py::cast<py::tuple>(hooks_of_all);
      global_hooks_.push_back({of[0].cast<py::dict>(), interned(of[1]), py::object()});
    }
    for (const py::handle name : absent) absent_.push_back(interned(name));
    for (const py::handle name : hooks) kept_.push_back(interned(name));
    for (const char* name : {"_parameters", "_buffers", "_modules"}) kept_.push_back(PyUnicode_InternFromString(name));
  }

  // Whether the functions are torch's own, and no hook is there for all modules.
  bool is_untouched() const {
    return std::all_of(functions_.begin(), functions_.end(),
                       [](const Name& of) { return item(of.space.ptr(), of.name) == of.own.ptr(); }) &&
           std::all_of(global_hooks_.begin(), global_hooks_.end(), [](const Name& of) {
             PyObject* hooks = item(of.space.ptr(), of.name);
             return hooks != nullptr && PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0;
           });
  }

  bool read(PyObject* module, ModuleDict& to) {
    Kind& kind = kinds_[Py_TYPE(module)];
    if (kind.number == 0 || kind.number != Py_TYPE(module)->tp_version_tag) {
      kind.type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(Py_TYPE(module)));
      kind.is_unpatched = py::cast<bool>(is_unpatched_(kind.type));
      kind.number = Py_TYPE(module)->tp_version_tag;
    }
    if (!kind.is_unpatched) return false;
    to.dict = PyObject_GenericGetDict(module, nullptr);
    if (to.dict == nullptr) return PyErr_Clear(), false;
    Py_DECREF(to.dict);  // the module keeps it
    if (!PyDict_CheckExact(to.dict)) return false;
    std::vector<PyObject*>& kept = values_;
    if (!has_known_names(to.dict, kind, kept)) {
      for (PyObject* name : absent_)
        if (item(to.dict, name) != nullptr) return false;
      remember_names(to.dict, kind);
      if (!has_known_names(to.dict, kind, kept)) return false;
    }
    for (PyObject* value : kept)
      if (!PyDict_Check(value)) return false;
    const size_t hooks = kept.size() - 3;
    for (size_t i = 0; i < hooks; ++i)
      if (PyDict_GET_SIZE(kept[i]) != 0) return false;
    to.parameters = kept[hooks], to.buffers = kept[hooks + 1], to.modules = kept[hooks + 2];
    return true;
  }

 private:
  struct Kind {
    py::object type;
    unsigned number = 0;  // Python's of the state that the class is in
    bool is_unpatched = false;
    std::vector<std::pair<py::object, int>> names;  // of an instance's __dict__, with the place in `kept_` or -1
  };

  struct Name {
    py::dict space;
    PyObject* name;
    py::object own;
  };

  // Whether a __dict__ has the names that one before it had, in their order; the values of those to be looked at.
  bool has_known_names(PyObject* dict, const Kind& kind, std::vector<PyObject*>& values) const {
    if (PyDict_GET_SIZE(dict) != Py_ssize_t(kind.names.size())) return false;
    values.assign(kept_.size(), nullptr);
    PyObject *key, *value;
    Py_ssize_t place = 0;
    for (const auto& [name, kept] : kind.names) {
      if (!PyDict_Next(dict, &place, &key, &value) || key != name.ptr()) return false;
      if (kept >= 0) values[kept] = value;
    }
    return std::find(values.begin(), values.end(), nullptr) == values.end();
  }
  void remember_names(PyObject* dict, Kind& kind) const {
    kind.names.clear();
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(dict, &place, &key, &value);) {
      const auto same = [&](PyObject* name) { return PyObject_RichCompareBool(name, key, Py_EQ) == 1; };
      const auto kept = std::find_if(kept_.begin(), kept_.end(), same);
      kind.names.emplace_back(py::reinterpret_borrow<py::object>(key), kept == kept_.end() ? -1 : kept - kept_.begin());
    }
  }

  const py::object is_unpatched_;
  std::vector<Name> functions_, global_hooks_;
  std::vector<PyObject*> absent_, kept_;  // interned; of kept_ the last three are no hooks
  std::map<PyTypeObject*, Kind> kinds_;   // which keep their classes
  std::vector<PyObject*> values_;
};

bool has_kernels(at::DeviceType device) {
#ifdef FASTGAN_WITH_CUDA
  return device == at::kCPU || device == at::kCUDA;
#else
  return device == at::kCPU;
#endif
}

// Whether no mode is on for which backend.is_compiled sends a call to the reference, nor one that is to see torch.ops.
bool is_usual_mode() {
  const auto& included = c10::impl::tls_local_dispatch_key_set().included_;
  return !at::impl::torch_function_mode_enabled() && !c10::impl::TorchDispatchModeTLS::any_modes_set() &&
         !at::tracer::impl::is_dispatch_enabled() && !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool has_tangent(const Tensor& t) {
  return t.unsafeGetTensorImpl()->autograd_meta() != nullptr && t._fw_grad(/*level=*/0).defined();
}

// Whether an object is a tensor that the compiled ops take.
bool is_usual(PyObject* object) {
  if (object == nullptr || !THPVariable_CheckExact(object)) return false;
  const Tensor& t = THPVariable_Unpack(object);
  const at::ScalarType dtype = t.scalar_type();
  return (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf) && is_plain(t) &&
         has_kernels(t.device().type()) && !has_tangent(t);
}

bool are_alike(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.device() == b.device();
}

// Whether an object is a parameter that a layer's op takes beside its input.
bool fits(PyObject* object, const Tensor& input, int64_t dimensions) {
  return is_usual(object) && THPVariable_Unpack(object).dim() == dimensions &&
         are_alike(THPVariable_Unpack(object), input);
}

// Calls the op without Python's lock.
template <class Op, class... Arguments>
py::object call(const Op& op, const Arguments&... arguments) {
  Tensor output;
  {
    const py::gil_scoped_release release;
    output = op.call(arguments...);
  }
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(output)));
}

// Whether a loss takes a target, which is a float: in [0, 1] of a cross-entropy, any finite one of others, and of those
// that take none the default.
bool is_target(PyObject* value, const GanLoss& loss, double usual) {
  if (!PyFloat_CheckExact(value)) return false;
  const double target = PyFloat_AS_DOUBLE(value);
  if (!loss.takes_targets) return target == usual;
  return loss.real.term == LossTerm::cross_entropy ? target >= 0 && target <= 1 : std::isfinite(target);
}

// The loss whose D, or whose G, is of a kind.
const GanLoss* loss_of_kind(PyObject* kind, const char* GanLoss::* name) {
  if (!PyUnicode_CheckExact(kind)) return nullptr;
  for (const GanLoss& loss : gan_losses)
    if (PyUnicode_CompareWithASCIIString(kind, loss.*name) == 0) return &loss;
  return nullptr;
}

// The reduction of a string, but for none.
std::optional<int64_t> scalar_reduction(PyObject* name) {
  if (!PyUnicode_CheckExact(name)) return std::nullopt;
  if (PyUnicode_CompareWithASCIIString(name, "mean") == 0) return static_cast<int64_t>(Reduction::mean);
  if (PyUnicode_CompareWithASCIIString(name, "sum") == 0) return static_cast<int64_t>(Reduction::sum);
  return std::nullopt;
}

// Of a pair of batches, the loss of first - second.
py::object paired_loss(const Tensor& first, const Tensor& second, double target, int64_t reduction) {
  if (first.sym_sizes() != second.sym_sizes()) return py::none();
  FASTGAN_OP("paired_loss", Tensor(const Tensor&, const Tensor&, double, int64_t));
  return call(op, first, second, target, reduction);
}

py::object discriminator_loss(py::handle real, py::handle fake, py::handle kind, py::handle real_target,
                              py::handle fake_target, py::handle reduction) {
  const auto number = scalar_reduction(reduction.ptr());
  const GanLoss* const loss = loss_of_kind(kind.ptr(), &GanLoss::discriminator);
  if (!number || loss == nullptr || !is_usual_mode() || !is_target(real_target.ptr(), *loss, 1) ||
      !is_target(fake_target.ptr(), *loss, 0) || !is_usual(real.ptr()) || !is_usual(fake.ptr()))
    return py::none();
  const Tensor real_logits = THPVariable_Unpack(real.ptr()), fake_logits = THPVariable_Unpack(fake.ptr());
  if (!are_alike(real_logits, fake_logits) || !is_verified(Verified::gan_losses, real_logits)) return py::none();
  if (loss->is_paired) return paired_loss(real_logits, fake_logits, loss->real.target, *number);
  FASTGAN_OP("discriminator_loss", Tensor(const Tensor&, const Tensor&, int64_t, double, double, int64_t));
  const bool given = loss->takes_targets;
  return call(op, real_logits, fake_logits, static_cast<int64_t>(loss->real.term),
              given ? PyFloat_AS_DOUBLE(real_target.ptr()) : loss->real.target,
              given ? PyFloat_AS_DOUBLE(fake_target.ptr()) : loss->fake.target, *number);
}

py::object generator_loss(py::handle fake, py::handle real, py::handle kind, py::handle target, py::handle reduction) {
  const auto number = scalar_reduction(reduction.ptr());
  const GanLoss* const loss = loss_of_kind(kind.ptr(), &GanLoss::name);
  if (!number || loss == nullptr || loss->is_paired == real.is_none() || !is_usual_mode() ||
      !is_target(target.ptr(), *loss, 1) || !is_usual(fake.ptr()) ||
      !is_verified(Verified::gan_losses, THPVariable_Unpack(fake.ptr())))
    return py::none();
  const Tensor fake_logits = THPVariable_Unpack(fake.ptr());
  if (loss->is_paired) {
    if (!is_usual(real.ptr()) || !are_alike(fake_logits, THPVariable_Unpack(real.ptr()))) return py::none();
    return paired_loss(fake_logits, Tensor(THPVariable_Unpack(real.ptr())), loss->generator.target, *number);
  }
  FASTGAN_OP("logits_loss", Tensor(const Tensor&, int64_t, double, double, int64_t));
  const double given = PyFloat_AS_DOUBLE(target.ptr());
  return call(op, fake_logits, static_cast<int64_t>(loss->generator.term), loss->generator_target(given),
              loss->generator.sign, *number);
}

// The number of an activation's name, or none.
std::optional<int64_t> activation_number(PyObject* name) {
  static const auto interned_names = [] {
    std::array<PyObject*, activation_count> names;
    for (int i = 0; i < activation_count; ++i) names[i] = PyUnicode_InternFromString(activation_names[i]);
    return names;
  }();
  if (name == nullptr || !PyUnicode_CheckExact(name)) return std::nullopt;
  for (int i = 0; i < activation_count; ++i)
    if (name == interned_names[i]) return i;
  for (int i = 0; i < activation_count; ++i)
    if (PyUnicode_CompareWithASCIIString(name, activation_names[i]) == 0) return i;
  return std::nullopt;
}

// The layers of a call, one after the other. Small stacks take no memory of their own.
class LayerCall {
 public:
  explicit LayerCall(const Tensor& input) : input_(input), width_(input.sym_size(-1)) {}

  // Whether a layer fits what comes before it; then it is added. bias may be Python's None; slope is a float.
  bool add(PyObject* weight, PyObject* bias, std::optional<int64_t> activation, double slope) {
    if (!activation || !std::isfinite(slope) || !fits(weight, input_, 2) || bias == nullptr) return false;
    const bool has_bias = bias != Py_None;
    if (has_bias && !fits(bias, input_, 1)) return false;
    const Tensor& w = THPVariable_Unpack(weight);
    if (w.sym_size(1) != width_) return false;
    width_ = w.sym_size(0);
    if (has_bias && THPVariable_Unpack(bias).sym_size(0) != width_) return false;
    weights_.push_back(w);
    biases_.push_back(has_bias ? Tensor(THPVariable_Unpack(bias)) : Tensor());
    activations_.push_back(*activation);
    slopes_.push_back(slope);
    return true;
  }

  // The activation of the layer added last.
  void set_activation(int64_t number, double slope) {
    activations_.back() = number;
    slopes_.back() = slope;
  }
  bool empty() const { return weights_.empty(); }

  // Without Python's lock.
  py::object run() const {
    Tensor output;
    {
      const py::gil_scoped_release release;
      output = call_mlp(input_, weights_, biases_, activations_, slopes_);
    }
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(output)));
  }

 private:
  const Tensor input_;
  c10::SymInt width_;
  c10::SmallVector<Tensor, 8> weights_, biases_;
  c10::SmallVector<int64_t, 8> activations_;
  c10::SmallVector<double, 8> slopes_;
};

// Whether an object is an input that layers take.
bool is_layer_input(PyObject* input) {
  return is_usual(input) && THPVariable_Unpack(input).dim() > 0 &&
         is_verified(Verified::layers, THPVariable_Unpack(input));
}

py::object linear_act(py::handle input, py::handle weight, py::handle bias, py::handle activation, py::handle slope) {
  if (!is_usual_mode() || !is_layer_input(input.ptr()) || !PyFloat_CheckExact(slope.ptr())) return py::none();
  LayerCall layer(THPVariable_Unpack(input.ptr()));
  const auto number = activation_number(activation.ptr());
  if (!layer.add(weight.ptr(), bias.ptr(), number, PyFloat_AS_DOUBLE(slope.ptr()))) return py::none();
  return layer.run();
}

// The items of a list or a tuple of so many, or null. Borrowed from it, as it stands.
PyObject** items_of(PyObject* sequence, Py_ssize_t count) {
  if ((!PyList_CheckExact(sequence) && !PyTuple_CheckExact(sequence)) || PySequence_Fast_GET_SIZE(sequence) != count)
    return nullptr;
  return PySequence_Fast_ITEMS(sequence);
}

py::object mlp(py::handle input, py::handle weights, py::handle biases, py::handle activations, py::handle slopes) {
  if (!PyList_CheckExact(weights.ptr()) && !PyTuple_CheckExact(weights.ptr())) return py::none();
  const Py_ssize_t count = PySequence_Fast_GET_SIZE(weights.ptr());
  PyObject** const all_weights = items_of(weights.ptr(), count);
  PyObject** const all_activations = items_of(activations.ptr(), count);
  PyObject** const all_biases = biases.is_none() ? nullptr : items_of(biases.ptr(), count);
  PyObject** const all_slopes = slopes.is_none() ? nullptr : items_of(slopes.ptr(), count);
  if (count == 0 || all_activations == nullptr || (all_biases == nullptr && !biases.is_none()) ||
      (all_slopes == nullptr && !slopes.is_none()) || !is_usual_mode() || !is_layer_input(input.ptr()))
    return py::none();
  LayerCall layers(THPVariable_Unpack(input.ptr()));
  for (Py_ssize_t l = 0; l < count; ++l) {
    PyObject* const slope = all_slopes == nullptr ? nullptr : all_slopes[l];
    if (slope != nullptr && !PyFloat_CheckExact(slope)) return py::none();
    if (!layers.add(all_weights[l], all_biases == nullptr ? Py_None : all_biases[l],
                    activation_number(all_activations[l]), slope == nullptr ? 0.01 : PyFloat_AS_DOUBLE(slope)))
      return py::none();
  }
  return layers.run();
}

// Reads the layers that an nn.Sequential holds: knows the classes whose instances it may run.
class LayerReader {
 public:
  // activations: by class, the number of an activation without parameters.
  LayerReader(py::object linear, py::object leaky_relu, py::dict activations, int64_t leaky_relu_number,
              py::object is_unpatched, const py::iterable& absent, const py::iterable& hooks,
              const py::iterable& functions, const py::iterable& global_hooks)
      : list_(std::move(is_unpatched), absent, hooks, functions, global_hooks),
        linear_(std::move(linear)),
        leaky_relu_(std::move(leaky_relu)),
        activations_(std::move(activations)),
        leaky_relu_number_(leaky_relu_number) {}

  // The output of an nn.Sequential for an input, where it holds one run of plain Linear + activation.
  py::object run(py::handle sequential, py::handle given) {
    ModuleDict of;
    if (!is_usual_mode() || !is_usual(given.ptr()) || !list_.is_untouched() || !list_.read(sequential.ptr(), of) ||
        !of.holds_nothing())
      return py::none();
    PyObject* const modules = of.modules;
    if (!is_layer_input(given.ptr())) return py::none();
    LayerCall layers(THPVariable_Unpack(given.ptr()));
    bool open = false;  // whether the last layer has no activation yet
    PyObject *name, *module;
    Py_ssize_t place = 0;
    while (PyDict_Next(modules, &place, &name, &module)) {
      PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(module));
      const bool is_linear = type == linear_.ptr();
      if (!is_linear && type != leaky_relu_.ptr() && item(activations_.ptr(), type) == nullptr) return py::none();
      ModuleDict own;
      if (!list_.read(module, own) || PyDict_GET_SIZE(own.modules) != 0) return py::none();
      if (is_linear) {
        PyObject* parameters = own.parameters;
        if (PyDict_GET_SIZE(parameters) != 2 || PyDict_GET_SIZE(own.buffers) != 0) return py::none();
        if (!layers.add(item(parameters, names_.weight), item(parameters, names_.bias),
                        static_cast<int64_t>(Activation::identity), 0))
          return py::none();
        open = true;
        continue;
      }
      if (!open || !own.holds_nothing()) return py::none();
      open = false;
      if (type == leaky_relu_.ptr()) {
        PyObject* slope = item(own.dict, names_.slope);
        if (slope == nullptr || !PyFloat_CheckExact(slope) || !std::isfinite(PyFloat_AS_DOUBLE(slope)))
          return py::none();
        layers.set_activation(leaky_relu_number_, PyFloat_AS_DOUBLE(slope));
      } else if (PyObject* number = item(activations_.ptr(), type)) {
        layers.set_activation(PyLong_AsLongLong(number), 0);
      } else {
        return py::none();
      }
    }
    return layers.empty() ? py::none() : layers.run();
  }

 private:
  // Interned, for lookups by identity.
  const struct {
    PyObject* weight = PyUnicode_InternFromString("weight");
    PyObject* bias = PyUnicode_InternFromString("bias");
    PyObject* slope = PyUnicode_InternFromString("negative_slope");
  } names_;
  LayerList list_;
  const py::object linear_, leaky_relu_;
  const py::dict activations_;
  const int64_t leaky_relu_number_;
};

}  // namespace

void register_direct_calls(py::module_& m) {
  m.def(
      "set_verified",
      [](const std::string& family, const std::string& device, const py::object& dtype, bool verified) {
        TORCH_CHECK(THPDtype_Check(dtype.ptr()), "set_verified: dtype must be a torch.dtype");
        set_verified(family, at::Device(device), reinterpret_cast<THPDtype*>(dtype.ptr())->scalar_type, verified);
      },
      py::arg("family"), py::arg("device"), py::arg("dtype"), py::arg("verified"),
      "Whether direct calls of a family of kernels run on a device; none do before this was called.");
  m.def("discriminator_loss", &discriminator_loss, py::arg("real_logits"), py::arg("fake_logits"), py::arg("kind"),
        py::arg("real_target"), py::arg("fake_target"), py::arg("reduction"),
        "functional.discriminator_loss, or None where something is unusual.");
  m.def("generator_loss", &generator_loss, py::arg("fake_logits"), py::arg("real_logits"), py::arg("kind"),
        py::arg("target"), py::arg("reduction"), "functional.generator_loss, or None where something is unusual.");
  m.def("linear_act", &linear_act, py::arg("input"), py::arg("weight"), py::arg("bias"), py::arg("activation"),
        py::arg("negative_slope"), "functional.linear_act, or None where something is unusual.");
  m.def("mlp", &mlp, py::arg("input"), py::arg("weights"), py::arg("biases"), py::arg("activations"),
        py::arg("negative_slopes"), "functional.mlp, or None where something is unusual.");
  py::class_<LayerReader>(m, "LayerReader", "Runs the layers of an nn.Sequential where they are all plain ones.")
      .def(py::init<py::object, py::object, py::dict, int64_t, py::object, py::iterable, py::iterable, py::iterable,
                    py::iterable>(),
           py::arg("linear"), py::arg("leaky_relu"), py::arg("activations"), py::arg("leaky_relu_number"),
           py::arg("is_unpatched"), py::arg("absent"), py::arg("hooks"), py::arg("functions"), py::arg("global_hooks"))
      .def("run", &LayerReader::run, py::arg("sequential"), py::arg("input"),
           "The output for an input, or None where something is unusual.");
}

}  // namespace fastgan::bindings

#endif
