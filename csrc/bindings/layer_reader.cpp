#include "layer_reader.h"

#ifndef FASTGAN_SIMT

#include <ATen/PythonTorchFunctionTLS.h>
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

// Whether a tensor is such as the op takes beside the input.
bool fits(PyObject* object, const Tensor& input, int64_t dimensions) {
  if (object == nullptr || !THPVariable_CheckExact(object)) return false;
  const Tensor& t = THPVariable_Unpack(object);
  return t.dim() == dimensions && t.scalar_type() == input.scalar_type() && t.device() == input.device() &&
         t.layout() == at::kStrided;
}

// Knows the classes whose instances it may run.
class LayerReader {
 public:
  // activations: by class, the number of an activation without parameters.
  LayerReader(py::object linear, py::object leaky_relu, py::dict activations, int64_t leaky_relu_number)
      : linear_(std::move(linear)),
        leaky_relu_(std::move(leaky_relu)),
        activations_(std::move(activations)),
        leaky_relu_number_(leaky_relu_number) {}

  // The output of the modules of an nn.Sequential, `_modules`, or None where Python is to look at them itself: it
  // raises what is to be raised, and runs what is no run of plain Linear and activation.
  py::object run(const py::dict& modules, const py::object& given) const {
    if (!PyDict_CheckExact(modules.ptr()) || !THPVariable_CheckExact(given.ptr()) ||
        at::impl::torch_function_mode_enabled())
      return py::none();
    const Tensor input = THPVariable_Unpack(given.ptr());
    if (input.dim() == 0 || input.layout() != at::kStrided) return py::none();
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
    Tensor output;
    {
      const py::gil_scoped_release release;
      FASTGAN_OP("mlp", MlpSignature);
      output = op.call(input, weights, biases, activations, slopes);
    }
    return py::reinterpret_steal<py::object>(THPVariable_Wrap(std::move(output)));
  }

 private:
  const Names names_;
  const py::object linear_, leaky_relu_;
  const py::dict activations_;
  const int64_t leaky_relu_number_;
};

}  // namespace

void register_layer_reader(py::module_& m) {
  py::class_<LayerReader>(m, "LayerReader", "Runs the layers of an nn.Sequential where they are all plain ones.")
      .def(py::init<py::object, py::object, py::dict, int64_t>(), py::arg("linear"), py::arg("leaky_relu"),
           py::arg("activations"), py::arg("leaky_relu_number"))
      .def("run", &LayerReader::run, py::arg("modules"), py::arg("input"),
           "The output for an input, or None where that is not all there is to do.");
}

}  // namespace fastgan::bindings

#endif
