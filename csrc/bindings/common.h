// What the bindings of every op share.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include "../core/scalar.h"

// The ops' namespace: torch.ops.fastgan, but in the test build of tests/simt/.
#ifndef FASTGAN_LIBRARY
#define FASTGAN_LIBRARY fastgan
#endif

namespace fastgan::bindings {

using at::Tensor;
using at::TensorList;

// torch's own numbers for the reductions (at::Reduction): none 0, mean 1, sum 2.
enum class Reduction : int64_t { none, mean, sum };

inline Reduction reduction_of(int64_t number) {
  TORCH_CHECK(number >= 0 && number <= 2, "reduction must be 0 (none), 1 (mean) or 2 (sum), not ", number);
  return static_cast<Reduction>(number);
}

// The factor of each term in the reduced loss: 1 / n for the mean (so that the mean of nothing is NaN, as in torch).
inline double reduction_scale(Reduction reduction, int64_t n) {
  switch (reduction) {
    case Reduction::mean:
      return 1.0 / static_cast<double>(n);
    case Reduction::none:
    case Reduction::sum:
      return 1.0;
  }
  TORCH_CHECK(false, "no such reduction");
}

template <class T>
struct Tag {
  using type = T;
};

// Calls f(Tag<T>) with fastgan's own type for the dtype; the 16-bit types have torch's layout.
template <class F>
void with_dtype(at::ScalarType dtype, const char* op, F&& f) {
  at::internal::lazy_init_num_threads();  // torch.set_num_threads reaches a new thread at its first parallel call
  switch (dtype) {
    case at::kFloat:
      return f(Tag<float>{});
    case at::kDouble:
      return f(Tag<double>{});
    case at::kBFloat16:
      return f(Tag<bfloat16>{});
    case at::kHalf:
      return f(Tag<float16>{});
    default:
      TORCH_CHECK(false, op, ": the dtype must be float32, float64, bfloat16 or float16, not ", dtype);
  }
}

// Of a tensor whose values are not what memory holds there is none.
template <class T>
const T* data(const Tensor& tensor) {
  TORCH_CHECK(
      !tensor.is_neg() && !tensor._is_zerotensor(),
      "fastgan: a tensor with a lazy sign, or a zero without memory, must be resolved before a kernel reads it");
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// A 0-d tensor of the dtype and device of `like`.
inline Tensor scalar_like(const Tensor& like) { return at::empty({}, like.options()); }

// Whether autograd must record. Forward-mode AD has no rule here, and must not be told that there is no tangent.
inline bool any_requires_grad(TensorList tensors) {
  bool any = false;
  for (const Tensor& tensor : tensors) {
    if (!tensor.defined()) continue;
    any = any || tensor.requires_grad();
    const bool has_tangent =
        tensor.unsafeGetTensorImpl()->autograd_meta() != nullptr && tensor._fw_grad(/*level=*/0).defined();
    TORCH_CHECK_NOT_IMPLEMENTED(!has_tangent,
                                "fastgan's compiled ops have no forward-mode derivative; fastgan.functional runs plain "
                                "PyTorch for it, and so does fastgan.use_backend('reference')");
  }
  return any && at::GradMode::is_enabled();
}

// For the length of a scope, the torch ops called do not meet autocast: what comes in has the dtype it should have.
class WithoutAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard_{c10::autocast_dispatch_keyset};
};

// A typed handle on an op of this library, looked up once.
#define FASTGAN_OP(name, signature) \
  static const auto op =            \
      c10::Dispatcher::singleton().findSchemaOrThrow(C10_STRINGIZE(FASTGAN_LIBRARY) "::" name, "").typed<signature>()

}  // namespace fastgan::bindings
