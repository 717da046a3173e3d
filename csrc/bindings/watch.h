// What a plan has read of Python objects, so that each step can ask whether it is still so.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

namespace fastgan::bindings {

class Watch {
 public:
  // holder[name] must stay this very object.
  void value(pybind11::dict holder, pybind11::str name, pybind11::object value) {
    PyObject* key = name.release().ptr();
    PyUnicode_InternInPlace(&key);
    values_.push_back({std::move(holder), pybind11::reinterpret_steal<pybind11::object>(key), std::move(value)});
  }
  // A dict or list must keep its length.
  void length(pybind11::object sized, Py_ssize_t length) { lengths_.push_back({std::move(sized), length}); }
  // One of the optimizers' param_groups; its numbers are read at each step, but for a learning rate on a device.
  void group(pybind11::dict group, bool decoupled, bool rate_on_device) {
    groups_.push_back({std::move(group), decoupled, rate_on_device});
  }

  bool is_current() const {
    for (const auto& [holder, name, value] : values_)
      if (PyDict_GetItemWithError(holder.ptr(), name.ptr()) != value.ptr()) return false;
    for (const auto& [sized, length] : lengths_)
      if (PyObject_Length(sized.ptr()) != length) return false;
    return true;
  }

  // Of each group lr, beta1, beta2, eps, weight_decay, amsgrad, maximize, decoupled.
  void hyperparameters(std::vector<double>& numbers) const {
    numbers.clear();
    for (const auto& [group, decoupled, rate_on_device] : groups_) {
      static PyObject *lr = PyUnicode_InternFromString("lr"), *betas = PyUnicode_InternFromString("betas"),
                      *eps = PyUnicode_InternFromString("eps"), *decay = PyUnicode_InternFromString("weight_decay"),
                      *amsgrad = PyUnicode_InternFromString("amsgrad"),
                      *maximize = PyUnicode_InternFromString("maximize");
      const pybind11::sequence both = pybind11::reinterpret_borrow<pybind11::sequence>(item(group, betas));
      for (const double number :
           {rate_on_device ? 0.0 : number_of(item(group, lr)), number_of(both[0]), number_of(both[1]),
            number_of(item(group, eps)), number_of(item(group, decay)), number_of(item(group, amsgrad)),
            number_of(item(group, maximize)), decoupled ? 1.0 : 0.0})
        numbers.push_back(number);
    }
  }

 private:
  struct Value {
    pybind11::dict holder;
    pybind11::object name, value;
  };
  struct Length {
    pybind11::object sized;
    Py_ssize_t length;
  };
  struct Group {
    pybind11::dict group;
    bool decoupled, rate_on_device;
  };

  static pybind11::handle item(const pybind11::dict& group, PyObject* name) {
    PyObject* found = PyDict_GetItemWithError(group.ptr(), name);
    if (found == nullptr) throw pybind11::key_error(pybind11::str(name).cast<std::string>());
    return found;
  }
  // Of a number, a bool or a tensor of one element.
  static double number_of(pybind11::handle value) {
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
    return number;
  }

  std::vector<Value> values_;
  std::vector<Length> lengths_;
  std::vector<Group> groups_;
};

}  // namespace fastgan::bindings
