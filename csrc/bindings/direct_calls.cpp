#include "direct_calls.h"

#ifndef FASTGAN_SIMT

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/TracerMode.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "mlp.h"

namespace py = pybind11;

namespace fastgan::bindings {

namespace {

// Interned, for lookups by identity.
struct Names {
  PyObject* forward = PyUnicode_InternFromString("forward");
  PyObject* parameters = PyUnicode_InternFromString("_parameters");
  PyObject* weight = PyUnicode_InternFromString("weight");
  PyObject* bias = PyUnicode_InternFromString("bias");
  PyObject* slope = PyUnicode_InternFromString("negative_slope");
  PyObject* hooks[4] = {PyUnicode_InternFromString("_forward_hooks"), PyUnicode_InternFromString("_forward_pre_hooks"),
                        PyUnicode_InternFromString("_backward_hooks"),
                        PyUnicode_InternFromString("_backward_pre_hooks")};
};

PyObject* item(PyObject* dict, PyObject* name) { return PyDict_GetItemWithError(dict, name); }

// A module's __dict__, where calling the module runs its class's forward and nothing else; else null.
PyObject* plain_dict(PyObject* module, const Names& names) {
  py::object dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
  if (!dict || !PyDict_CheckExact(dict.ptr())) {
    PyErr_Clear();
    return nullptr;
  }
  if (item(dict.ptr(), names.forward) != nullptr) return nullptr;
  for (PyObject* name : names.hooks) {
    PyObject* hooks = item(dict.ptr(), name);
    if (hooks == nullptr || !PyDict_Check(hooks) || PyDict_Size(hooks) != 0) return nullptr;
  }
  return dict.ptr();  // which the module keeps
}

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
  return !at::impl::torch_function_mode_enabled() && !at::tracer::impl::is_dispatch_enabled() &&
         !included.has(c10::DispatchKey::FuncTorchDynamicLayerFrontMode);
}

bool has_tangent(const Tensor& t) {
  return t.unsafeGetTensorImpl()->autograd_meta() != nullptr && t._fw_grad(/*level=*/0).defined();
}

// Whether an object is a tensor that the compiled ops take.
bool is_usual(PyObject* object) {
  if (object == nullptr || !THPVariable_CheckExact(object)) return false;
  const Tensor& t = THPVariable_Unpack(object);
  const at::ScalarType dtype = t.scalar_type();
  return (dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf) &&
         t.layout() == at::kStrided && has_kernels(t.device().type()) && !has_tangent(t);
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

// A float in [0, 1].
bool is_target(PyObject* value) {
  return PyFloat_CheckExact(value) && PyFloat_AS_DOUBLE(value) >= 0 && PyFloat_AS_DOUBLE(value) <= 1;
}

// The reduction of a string, but for none.
std::optional<int64_t> scalar_reduction(PyObject* name) {
  if (!PyUnicode_CheckExact(name)) return std::nullopt;
  if (PyUnicode_CompareWithASCIIString(name, "mean") == 0) return static_cast<int64_t>(Reduction::mean);
  if (PyUnicode_CompareWithASCIIString(name, "sum") == 0) return static_cast<int64_t>(Reduction::sum);
  return std::nullopt;
}

py::object discriminator_loss(py::handle real, py::handle fake, py::handle real_target, py::handle fake_target,
                              py::handle reduction) {
  const auto number = scalar_reduction(reduction.ptr());
  if (!number || !is_usual_mode() || !is_target(real_target.ptr()) || !is_target(fake_target.ptr()) ||
      !is_usual(real.ptr()) || !is_usual(fake.ptr()))
    return py::none();
  const Tensor real_logits = THPVariable_Unpack(real.ptr()), fake_logits = THPVariable_Unpack(fake.ptr());
  if (!are_alike(real_logits, fake_logits)) return py::none();
  FASTGAN_OP("discriminator_loss", Tensor(const Tensor&, const Tensor&, double, double, int64_t));
  return call(op, real_logits, fake_logits, PyFloat_AS_DOUBLE(real_target.ptr()), PyFloat_AS_DOUBLE(fake_target.ptr()),
              *number);
}

py::object logits_loss(py::handle logits, py::handle target, double sign, py::handle reduction) {
  const auto number = scalar_reduction(reduction.ptr());
  if (!number || !is_usual_mode() || !is_target(target.ptr()) || !is_usual(logits.ptr())) return py::none();
  FASTGAN_OP("logits_loss", Tensor(const Tensor&, double, double, int64_t));
  return call(op, Tensor(THPVariable_Unpack(logits.ptr())), PyFloat_AS_DOUBLE(target.ptr()), sign, *number);
}

// Reads the layers that an nn.Sequential holds: knows the classes whose instances it may run.
class LayerReader {
 public:
  // activations: by class, the number of an activation without parameters.
  LayerReader(py::object linear, py::object leaky_relu, py::dict activations, int64_t leaky_relu_number)
      : linear_(std::move(linear)),
        leaky_relu_(std::move(leaky_relu)),
        activations_(std::move(activations)),
        leaky_relu_number_(leaky_relu_number) {}

  // The output of the `_modules` of an nn.Sequential for an input, where they are one run of plain Linear + activation.
  py::object run(py::handle modules, py::handle given) const {
    if (!PyDict_CheckExact(modules.ptr()) || !is_usual_mode() || !is_usual(given.ptr())) return py::none();
    const Tensor input = THPVariable_Unpack(given.ptr());
    if (input.dim() == 0) return py::none();
    std::vector<Tensor> weights;
    Biases biases;
    std::vector<int64_t> activations;
    std::vector<double> slopes;
    c10::SymInt width = input.sym_size(-1);
    bool open = false;  // whether the last layer has no activation yet
    PyObject *name, *module;
    Py_ssize_t place = 0;
    while (PyDict_Next(modules.ptr(), &place, &name, &module)) {
      PyObject *type = reinterpret_cast<PyObject*>(Py_TYPE(module)), *dict = plain_dict(module, names_);
      if (dict == nullptr) return py::none();
      if (type == linear_.ptr()) {
        PyObject* parameters = item(dict, names_.parameters);
        if (parameters == nullptr || !PyDict_Check(parameters) || item(dict, names_.weight) != nullptr ||
            item(dict, names_.bias) != nullptr)
          return py::none();
        PyObject *weight = item(parameters, names_.weight), *bias = item(parameters, names_.bias);
        if (!fits(weight, input, 2) || bias == nullptr || (bias != Py_None && !fits(bias, input, 1))) return py::none();
        const Tensor& w = THPVariable_Unpack(weight);
        if (w.sym_size(1) != width) return py::none();
        width = w.sym_size(0);
        if (bias != Py_None && THPVariable_Unpack(bias).sym_size(0) != width) return py::none();
        weights.push_back(w);
        biases.push_back(bias == Py_None ? std::nullopt : std::optional<Tensor>(THPVariable_Unpack(bias)));
        activations.push_back(0);
        slopes.push_back(0);
        open = true;
        continue;
      }
      if (!open) return py::none();
      open = false;
      if (type == leaky_relu_.ptr()) {
        PyObject* slope = item(dict, names_.slope);
        if (slope == nullptr || !PyFloat_CheckExact(slope) || !std::isfinite(PyFloat_AS_DOUBLE(slope)))
          return py::none();
        activations.back() = leaky_relu_number_;
        slopes.back() = PyFloat_AS_DOUBLE(slope);
      } else if (PyObject* number = item(activations_.ptr(), type)) {
        activations.back() = PyLong_AsLongLong(number);
      } else {
        return py::none();
      }
    }
    if (weights.empty()) return py::none();
    FASTGAN_OP("mlp", MlpSignature);
    return call(op, input, weights, biases, activations, slopes);
  }

 private:
  const Names names_;
  const py::object linear_, leaky_relu_;
  const py::dict activations_;
  const int64_t leaky_relu_number_;
};

}  // namespace

void register_direct_calls(py::module_& m) {
  m.def("discriminator_loss", &discriminator_loss, py::arg("real_logits"), py::arg("fake_logits"),
        py::arg("real_target"), py::arg("fake_target"), py::arg("reduction"),
        "functional.discriminator_loss, or None where something is unusual.");
  m.def("logits_loss", &logits_loss, py::arg("logits"), py::arg("target"), py::arg("sign"), py::arg("reduction"),
        "sign times the cross-entropy against a constant, or None where something is unusual.");
  py::class_<LayerReader>(m, "LayerReader", "Runs the layers of an nn.Sequential where they are all plain ones.")
      .def(py::init<py::object, py::object, py::dict, int64_t>(), py::arg("linear"), py::arg("leaky_relu"),
           py::arg("activations"), py::arg("leaky_relu_number"))
      .def("run", &LayerReader::run, py::arg("modules"), py::arg("input"),
           "The output for an input, or None where something is unusual.");
}

}  // namespace fastgan::bindings

#endif
