// What a plan has read of Python's objects, so that each step can ask whether it is still so.
//
// An entry is compared by identity and in place: a lookup in a dict costs ten times what walking over it does.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <vector>

#include "../core/adam.h"
#include "common.h"

namespace fastgan::bindings {

// Whether a tensor's elements lie in memory as its sizes and strides say, and nothing else may compute them: no lazy
// sign or conjugate, no zeros without memory, no transform's wrapper, no layout but strided.
inline bool is_plain(const Tensor& t) {
  const c10::DispatchKeySet keys = t.key_set();
  for (const c10::DispatchKey key :
       {c10::DispatchKey::Conjugate, c10::DispatchKey::Negative, c10::DispatchKey::ZeroTensor, c10::DispatchKey::Python,
        c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchBatched, c10::DispatchKey::FuncTorchGradWrapper,
        c10::DispatchKey::NestedTensor})
    if (keys.has(key)) return false;
  return t.layout() == at::kStrided && !t.is_quantized() && !t.is_meta() && t.has_storage() &&
         (t.numel() == 0 || t.const_data_ptr() != nullptr);
}

// Whether autograd would call a hook on its way to a leaf: on the leaf (Python's are one dict, which may be there and
// empty; that is looked at apart) or on the node that accumulates its gradient.
inline size_t hooks_on(const Tensor& leaf) {
  const auto* meta = torch::autograd::impl::get_autograd_meta(leaf);
  if (meta == nullptr) return 0;
  size_t count = meta->hooks_.size() + (meta->post_acc_grad_hooks_ != nullptr);
  if (const auto node = torch::autograd::impl::try_get_grad_accumulator(leaf))
    count += node->pre_hooks().size() + node->post_hooks().size();
  return count;
}
inline bool has_node_hooks(const Tensor& leaf) {
  const auto node = torch::autograd::impl::try_get_grad_accumulator(leaf);
  return node && (!node->pre_hooks().empty() || !node->post_hooks().empty());
}

// First and last byte of a tensor's elements.
inline std::pair<uintptr_t, uintptr_t> span(const Tensor& t) {
  int64_t last = 0;
  for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
  const auto begin = reinterpret_cast<uintptr_t>(t.const_data_ptr());
  return {begin, begin + (last + 1) * t.element_size()};
}

class Watch {
 public:
  // An instance: its class, its __dict__, the names in there, and the values of those that count.
  void object(pybind11::object instance, const pybind11::set& counted) {
    auto dict = pybind11::reinterpret_steal<pybind11::object>(PyObject_GenericGetDict(instance.ptr(), nullptr));
    if (!dict) throw pybind11::error_already_set();
    Entries entries = entries_of(dict);
    for (Entry& entry : entries)
      if (!counted.contains(entry.key)) entry.value = pybind11::object();
    objects_.push_back({std::move(instance), pybind11::object(), {std::move(dict), std::move(entries)}});
    objects_.back().type = pybind11::reinterpret_borrow<pybind11::object>(type_of(objects_.back().instance));
  }
  // A dict: all its names and values.
  void dict(pybind11::object dict) {
    Entries entries = entries_of(dict);
    dicts_.push_back({std::move(dict), std::move(entries)});
  }
  // One of those dicts has changed, and is right as it now is.
  void again(const pybind11::object& dict) {
    for (Dict& seen : dicts_)
      if (seen.dict.is(dict)) seen.entries = entries_of(dict);
  }
  // A dict's values of these names, those that are not there included.
  void items(const pybind11::dict& dict, const pybind11::iterable& names) {
    for (const pybind11::handle name : names) {
      PyObject* key = name.inc_ref().ptr();
      PyUnicode_InternInPlace(&key);
      PyObject* value = PyDict_GetItemWithError(dict.ptr(), key);
      items_.push_back({dict, pybind11::reinterpret_steal<pybind11::object>(key),
                        pybind11::reinterpret_borrow<pybind11::object>(value)});
    }
  }
  // A list: each of its elements.
  void list(pybind11::list list) {
    std::vector<pybind11::object> elements;
    for (const pybind11::handle element : list)
      elements.push_back(pybind11::reinterpret_borrow<pybind11::object>(element));
    lists_.push_back({std::move(list), std::move(elements)});
  }
  // A dict that must stay empty.
  void empty(pybind11::dict sized) { empty_.push_back(std::move(sized)); }
  // A class: nothing was assigned to it or to a base of it. Python keeps a number for each state of a class.
  void type(pybind11::object type) {
    PyObject_HasAttrString(type.ptr(), "__call__");  // a lookup gives it its number
    types_.push_back({type, version(type)});
  }
  // A tensor: where and what it is. Of a leaf that is trained, what autograd would do beside adding up its gradient.
  void tensor(pybind11::object object, bool is_parameter) {
    const Tensor& t = THPVariable_Unpack(object.ptr());
    Seen seen{object, Py_TYPE(object.ptr()), t.unsafeGetTensorImpl()};
    seen.sizes = t.sizes().vec(), seen.strides = t.strides().vec();
    seen.keys = t.key_set(), seen.dtype = t.dtype(), seen.device = t.device(), seen.data = t.const_data_ptr();
    seen.is_parameter = is_parameter;
    seen.requires_grad = t.requires_grad(), seen.hooks = hooks_on(t);
    if (t.numel() > 0) {
      spans_.push_back(span(t));
      sorted_ = false;
    }
    tensors_.push_back(std::move(seen));
  }
  // One of the optimizers' param_groups; its numbers are read at each step, but for a learning rate on a device.
  void group(pybind11::dict group, bool decoupled, bool rate_on_device) {
    PyObject* rate = PyDict_GetItemString(group.ptr(), "lr");
    const bool rate_is_tensor = rate != nullptr && THPVariable_Check(rate);
    groups_.push_back({std::move(group), decoupled, rate_on_device, rate_is_tensor});
  }

  bool is_current() const {
    for (const auto& [type, number] : types_)
      if (number == 0 || version(type) != number) return false;
    for (const auto& [instance, type, names] : objects_) {
      if (type_of(instance) != type.ptr()) return false;
      PyObject* dict = PyObject_GenericGetDict(instance.ptr(), nullptr);
      Py_XDECREF(dict);  // the instance keeps it
      if (dict != names.dict.ptr() || !same(names)) return PyErr_Clear(), false;
    }
    for (const Dict& dict : dicts_)
      if (!same(dict)) return false;
    for (const auto& [dict, name, value] : items_)
      if (PyDict_GetItemWithError(dict.ptr(), name.ptr()) != value.ptr()) return false;
    for (const auto& [list, elements] : lists_) {
      if (PyList_GET_SIZE(list.ptr()) != Py_ssize_t(elements.size())) return false;
      for (size_t i = 0; i < elements.size(); ++i)
        if (PyList_GET_ITEM(list.ptr(), i) != elements[i].ptr()) return false;
    }
    for (const auto& sized : empty_)
      if (PyDict_GET_SIZE(sized.ptr()) != 0) return false;
    return std::all_of(tensors_.begin(), tensors_.end(), [](const Seen& seen) { return seen.is_current(); });
  }

  // Whether two of the tensors have an element in common.
  bool overlaps() {
    sort();
    for (size_t i = 1; i < spans_.size(); ++i)
      if (spans_[i].first < spans_[i - 1].second) return true;
    return false;
  }
  // Whether a tensor has one in common with them. They have none in common with each other.
  bool touches(const Tensor& given) {
    sort();
    const auto [begin, end] = span(given);
    const auto after = std::lower_bound(spans_.begin(), spans_.end(), std::make_pair(end, uintptr_t(0)));
    return after != spans_.begin() && std::prev(after)->second > begin;
  }

  // Of each group, in their order. False where torch's own reading of them would fail.
  bool hyperparameters(std::vector<AdamGroup>& groups) const {
    static PyObject *lr = PyUnicode_InternFromString("lr"), *betas = PyUnicode_InternFromString("betas"),
                    *eps = PyUnicode_InternFromString("eps"), *decay = PyUnicode_InternFromString("weight_decay"),
                    *amsgrad = PyUnicode_InternFromString("amsgrad"),
                    *maximize = PyUnicode_InternFromString("maximize");
    groups.clear();
    for (const auto& [group, decoupled, rate_on_device, rate_is_tensor] : groups_) {
      const auto read = [dict = group.ptr()](PyObject* name, auto& to) {
        return number(PyDict_GetItemWithError(dict, name), to);
      };
      AdamGroup of;
      AdamOptions& options = of.options;
      PyObject* both = PyDict_GetItemWithError(group.ptr(), betas);
      if (both == nullptr || !(PyTuple_CheckExact(both) || PyList_CheckExact(both)) ||
          PySequence_Fast_GET_SIZE(both) != 2)
        return PyErr_Clear(), false;
      // One that has become a tensor since, torch may refuse.
      PyObject* rate = PyDict_GetItemWithError(group.ptr(), lr);
      if (!rate_is_tensor && rate != nullptr && THPVariable_Check(rate)) return false;
      if (!rate_on_device && !read(lr, of.learning_rate)) return false;
      if (!beta(PySequence_Fast_GET_ITEM(both, 0), options.beta1) ||
          !beta(PySequence_Fast_GET_ITEM(both, 1), options.beta2) || !read(eps, options.eps) ||
          !read(decay, options.weight_decay) || !read(amsgrad, options.amsgrad) || !read(maximize, options.maximize))
        return false;
      options.decoupled_weight_decay = decoupled;
      groups.push_back(of);
    }
    return true;
  }

 private:
  struct Entry {
    pybind11::object key, value;  // no value: any will do
  };
  using Entries = std::vector<Entry>;
  struct Dict {
    pybind11::object dict;
    Entries entries;
  };
  struct Object {
    pybind11::object instance, type;
    Dict names;
  };
  struct Item {
    pybind11::dict dict;
    pybind11::object name, value;
  };
  struct List {
    pybind11::list list;
    std::vector<pybind11::object> elements;
  };
  struct Type {
    pybind11::object type;
    unsigned number;
  };
  struct Group {
    pybind11::dict group;
    bool decoupled, rate_on_device, rate_is_tensor;
  };
  struct Seen {
    pybind11::object object;
    PyTypeObject* type;
    const c10::TensorImpl* impl;  // torch.utils.swap_tensors gives the object another, unless somebody holds this one
    std::vector<int64_t> sizes{}, strides{};
    c10::DispatchKeySet keys{};
    caffe2::TypeMeta dtype{};
    c10::Device device = at::kCPU;
    const void* data = nullptr;
    bool is_parameter = false, requires_grad = false;
    size_t hooks = 0;

    bool is_current() const {
      if (Py_TYPE(object.ptr()) != type) return false;
      const Tensor& tensor = THPVariable_Unpack(object.ptr());
      if (tensor.unsafeGetTensorImpl() != impl || tensor.key_set() != keys || tensor.dtype() != dtype ||
          tensor.device() != device || tensor.sizes() != at::IntArrayRef(sizes) ||
          tensor.strides() != at::IntArrayRef(strides) || tensor.const_data_ptr() != data)
        return false;
      if (!is_parameter) return true;
      const auto* meta = torch::autograd::impl::get_autograd_meta(tensor);
      return tensor.requires_grad() == requires_grad && (meta == nullptr || !meta->grad_fn_) &&
             hooks_on(tensor) == hooks;
    }
  };

  static PyObject* type_of(const pybind11::object& of) { return reinterpret_cast<PyObject*>(Py_TYPE(of.ptr())); }
  static unsigned version(const pybind11::object& type) {
    return reinterpret_cast<PyTypeObject*>(type.ptr())->tp_version_tag;
  }

  static Entries entries_of(const pybind11::object& dict) {
    if (!PyDict_Check(dict.ptr())) throw pybind11::type_error("a plan can only watch a dict");
    Entries entries;
    PyObject *key, *value;
    for (Py_ssize_t place = 0; PyDict_Next(dict.ptr(), &place, &key, &value);)
      entries.push_back(
          {pybind11::reinterpret_borrow<pybind11::object>(key), pybind11::reinterpret_borrow<pybind11::object>(value)});
    return entries;
  }
  static bool same(const Dict& of) {
    if (PyDict_GET_SIZE(of.dict.ptr()) != Py_ssize_t(of.entries.size())) return false;
    PyObject *key, *value;
    Py_ssize_t place = 0;
    for (const auto& [first_key, first_value] : of.entries) {
      if (!PyDict_Next(of.dict.ptr(), &place, &key, &value) || key != first_key.ptr()) return false;
      if (first_value && value != first_value.ptr()) return false;
    }
    return true;
  }
  // Reads a number, a bool or a tensor of one element.
  template <class To>
  static bool number(PyObject* value, To& to) {
    const double read = value == nullptr ? -1 : PyFloat_AsDouble(value);
    if (value == nullptr || (read == -1 && PyErr_Occurred())) return PyErr_Clear(), false;
    to = static_cast<To>(read);
    return true;
  }
  // A plain number in [0, 1): of a tensor torch's forms of Adam read another thing each, and 1 divides by zero.
  static bool beta(PyObject* value, double& to) {
    return (PyFloat_CheckExact(value) || PyLong_CheckExact(value)) && number(value, to) && to >= 0 && to < 1;
  }
  void sort() {
    if (!sorted_) std::sort(spans_.begin(), spans_.end());
    sorted_ = true;
  }

  std::vector<Object> objects_;
  std::vector<Dict> dicts_;
  std::vector<Item> items_;
  std::vector<List> lists_;
  std::vector<pybind11::dict> empty_;
  std::vector<Type> types_;
  std::vector<Seen> tensors_;
  std::vector<Group> groups_;
  std::vector<std::pair<uintptr_t, uintptr_t>> spans_;
  bool sorted_ = true;
};

}  // namespace fastgan::bindings
