// Whether a call of an op may go straight to the CPU's kernels: whether the dispatcher, with these tensors and in this
// thread's state, would come to nothing but autograd and them.
#pragma once

#ifndef FASTGAN_SIMT

#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "common.h"

namespace fastgan::bindings {

// No mode, transform, autocast or tracing is on in this thread, and no profiler looks on.
inline bool is_undisturbed() {
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  return keys.included_ == c10::default_included_set && keys.excluded_ == c10::default_excluded_set &&
         !at::hasCallbacks();
}

inline bool is_ordinary(const Tensor& t) {
  static const c10::DispatchKeySet ordinary = [] {
    const c10::InferenceMode off(false);
    return at::empty({0}).key_set();
  }();
  return t.key_set() == ordinary;
}

inline bool are_ordinary(TensorList tensors) {
  for (const Tensor& t : tensors)
    if (t.defined() && !is_ordinary(t)) return false;
  return true;
}

}  // namespace fastgan::bindings

#endif
