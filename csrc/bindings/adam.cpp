// Adam and AdamW over lists of tensors, in place: what torch.optim does in a step, in one kernel. Not differentiable.
#include "../cpu/adam.h"

#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>

#include "common.h"
#include "scopes.h"

#if defined(FASTGAN_SIMT) || defined(FASTGAN_WITH_CUDA)
#include "../cuda/adam.h"
#endif

namespace fastgan::bindings {

namespace {

void check(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs, TensorList max_exp_avg_sqs,
           TensorList state_steps, const std::optional<Tensor>& lr_tensor, bool amsgrad) {
  std::vector<std::pair<const char*, TensorList>> lists = {
      {"params", params}, {"grads", grads}, {"exp_avgs", exp_avgs}, {"exp_avg_sqs", exp_avg_sqs}};
  if (amsgrad) lists.push_back({"max_exp_avg_sqs", max_exp_avg_sqs});
  for (const auto& [name, list] : lists) {
    TORCH_CHECK(list.size() == params.size(), "adam_: ", name, " must have ", params.size(),
                " tensors, as params, not ", list.size());
    for (size_t i = 0; i < list.size(); ++i) {
      const Tensor &tensor = list[i], &param = params[i];
      TORCH_CHECK(tensor.sym_sizes() == param.sym_sizes() && tensor.scalar_type() == params[0].scalar_type() &&
                      tensor.device() == params[0].device() && tensor.is_contiguous(),
                  "adam_: ", name, "[", i, "] of shape ", tensor.sym_sizes(), ", ", tensor.scalar_type(), " on ",
                  tensor.device(), " must be contiguous and have the shape ", param.sym_sizes(), " of its parameter, ",
                  params[0].scalar_type(), " on ", params[0].device());
    }
  }
  TORCH_CHECK(state_steps.size() == params.size(), "adam_: state_steps must have ", params.size(),
              " tensors, as params, not ", state_steps.size());
  const auto is_scalar = [&](const Tensor& t) {
    return t.sym_numel() == 1 && t.scalar_type() == at::kFloat && t.device() == params[0].device();
  };
  for (const Tensor& step : state_steps)
    TORCH_CHECK(is_scalar(step), "adam_: a step must be one float32 element on ", params[0].device(), ", not of shape ",
                step.sym_sizes(), ", ", step.scalar_type(), " on ", step.device());
  TORCH_CHECK(params.empty() || !lr_tensor || is_scalar(*lr_tensor),
              "adam_: lr_tensor must be one float32 element on the device of params");
}

template <class Scope>
void adam_kernel(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                 TensorList max_exp_avg_sqs, TensorList state_steps, const std::optional<Tensor>& lr_tensor, double lr,
                 double beta1, double beta2, double weight_decay, double eps, bool amsgrad, bool maximize,
                 bool decoupled_weight_decay) {
  check(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, lr_tensor, amsgrad);
  if (params.empty()) return;
  const Scope here(params[0]);
  const AdamOptions options{beta1, beta2, weight_decay, eps, amsgrad, maximize, decoupled_weight_decay};
  with_dtype(params[0].scalar_type(), "adam_", [&](auto tag) {
    using T = typename decltype(tag)::type;
    std::vector<AdamTensor<T>> tensors;
    for (size_t i = 0; i < params.size(); ++i)
      tensors.push_back({params[i].numel(), mutable_data<T>(params[i]), data<T>(grads[i]), mutable_data<T>(exp_avgs[i]),
                         mutable_data<T>(exp_avg_sqs[i]), amsgrad ? mutable_data<T>(max_exp_avg_sqs[i]) : nullptr,
                         mutable_data<float>(state_steps[i])});
    adam(here, tensors.data(), static_cast<int>(tensors.size()), options, lr,
         lr_tensor ? data<float>(*lr_tensor) : nullptr);
  });
  for (const TensorList& list : {params, exp_avgs, exp_avg_sqs, amsgrad ? max_exp_avg_sqs : TensorList(), state_steps})
    for (const Tensor& tensor : list)
      if (!tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

template <class Scope>
void register_adam_kernels(torch::Library& m) {
  m.impl("adam_", adam_kernel<Scope>);
}

void adam_meta(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
               TensorList max_exp_avg_sqs, TensorList state_steps, const std::optional<Tensor>& lr_tensor, double,
               double, double, double, double, bool amsgrad, bool, bool) {
  check(params, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps, lr_tensor, amsgrad);
}

// Where no device has a kernel: nothing to update, or tensors elsewhere.
void adam_elsewhere(TensorList params, TensorList, TensorList, TensorList, TensorList, TensorList,
                    const std::optional<Tensor>&, double, double, double, double, double, bool, bool, bool) {
  TORCH_CHECK(params.empty(), "adam_: params must be on a device that fastgan was built for, not on ",
              params[0].device());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(FASTGAN_LIBRARY, m) {
  m.def(
      "adam_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor(e!)[] state_steps, Tensor? lr_tensor, float lr, float beta1, float beta2, "
      "float weight_decay, float eps, bool amsgrad, bool maximize, bool decoupled_weight_decay) -> ()");
}

FASTGAN_KERNELS(register_adam_kernels)

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Meta, m) { m.impl("adam_", adam_meta); }

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, CompositeExplicitAutograd, m) { m.impl("adam_", adam_elsewhere); }

TORCH_LIBRARY_IMPL(FASTGAN_LIBRARY, Autograd, m) { m.impl("adam_", torch::autograd::autogradNotImplementedFallback()); }

}  // namespace fastgan::bindings
