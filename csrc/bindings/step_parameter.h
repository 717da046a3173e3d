// A parameter that the whole-step engine updates, with its optimizer's state: the user's tensors, written in place.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <optional>
#include <utility>
#include <vector>

#include "../core/step.h"
#include "common.h"

namespace fastgan::bindings {

inline Tensor tensor_of(const pybind11::object& object) { return THPVariable_Unpack(object.ptr()); }
inline Tensor tensor_or_none(const pybind11::object& object) { return object.is_none() ? Tensor() : tensor_of(object); }

template <class T>
T* pointer(const Tensor& tensor) {
  return tensor.defined() ? mutable_data<T>(tensor) : nullptr;
}

inline void bump_version(const Tensor& tensor) {
  if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

struct Parameter {
  Parameter() = default;
  // Without a group it is not updated and has no state. State: step, exp_avg, exp_avg_sq and, with amsgrad,
  // max_exp_avg_sq.
  Parameter(pybind11::object value, pybind11::object average, bool is_in_optimizer, std::optional<int64_t> group,
            const pybind11::dict& state)
      : group(group),
        is_in_optimizer_(is_in_optimizer),
        value_object_(std::move(value)),
        average_object_(std::move(average)) {
    hold();
    if (!is_updated()) return;
    const auto tensor = [&](const char* name) { return state.contains(name) ? tensor_of(state[name]) : Tensor(); };
    step = tensor("step"), exp_avg = tensor("exp_avg"), exp_avg_sq = tensor("exp_avg_sq");
    max_exp_avg_sq = tensor("max_exp_avg_sq");
    TORCH_CHECK(step.defined() && exp_avg.defined() && exp_avg_sq.defined(),
                "a parameter's state must hold step, exp_avg and exp_avg_sq");
  }

  bool is_updated() const { return group.has_value(); }

  bool exists() const { return bool(value_object_); }
  void hold() { value = tensor_of(value_object_), average = tensor_or_none(average_object_); }
  void let_go() { value = Tensor(), average = Tensor(); }

  double steps_done() const {
    return step.scalar_type() == at::kDouble ? *data<double>(step) : double{*data<float>(step)};
  }

  void set_steps_done(double done) const {
    if (step.scalar_type() == at::kDouble)
      *mutable_data<double>(step) = done;
    else
      *mutable_data<float>(step) = float(done);
  }

  // The coming update, which is counted in `step`. Most parameters have the numbers of the one before.
  void prepare(const std::vector<AdamGroup>& groups, const Parameter* before) {
    if (!is_updated()) return;
    const AdamGroup& of = groups[*group];
    count = steps_done() + 1;
    set_steps_done(count);
    if (before != nullptr && before->group == group && before->count == count) {
      float_step = before->float_step, double_step = before->double_step;
      return;
    }
    float_step = adam_step<float>(of.options, of.learning_rate, count);
    double_step = adam_step<double>(of.options, of.learning_rate, count);
  }

  template <class T>
  AdamParameter<T> adam_parameter() const {
    AdamParameter<T> to;
    to.value = pointer<T>(value);
    if (!is_updated()) return to;
    to.exp_avg = pointer<T>(exp_avg), to.exp_avg_sq = pointer<T>(exp_avg_sq);
    to.max_exp_avg_sq = pointer<T>(max_exp_avg_sq);
    to.average = pointer<T>(average);
    to.step = device_step != nullptr ? static_cast<const AdamStep<T>*>(device_step) : adam(T());
    return to;
  }

  // Autograd must know that the values have changed, and gradients of before are gone, as after zero_grad.
  void after_update(double average_rate) {
    if (is_updated())
      bump_version(value), bump_version(average);
    else if (average.defined())
      average.lerp_(value.detach(), average_rate);
    if (is_in_optimizer_ && value.grad().defined()) value.mutable_grad() = Tensor();
  }

  Tensor value, average, step, exp_avg, exp_avg_sq, max_exp_avg_sq;
  std::optional<int64_t> group;       // of the optimizers' groups
  double count = 0;                   // of updates, the due one included
  const void* device_step = nullptr;  // where a device has the AdamStep of the update that is due

 private:
  const AdamStep<float>* adam(float) const { return &float_step; }
  const AdamStep<double>* adam(double) const { return &double_step; }

  bool is_in_optimizer_ = false;
  pybind11::object value_object_, average_object_;
  AdamStep<float> float_step{};
  AdamStep<double> double_step{};
};

}  // namespace fastgan::bindings
