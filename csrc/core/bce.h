// Binary cross-entropy of a logit x against a target t, with a weight w and a positive weight p:
//   loss = w ((1 - t) x + (1 + (p - 1) t) softplus(-x))
// which is torch.nn.functional.binary_cross_entropy_with_logits.
#pragma once

#include "math.h"

namespace fastgan {

// The two large terms are added first: for targets 0 and 1 their sum is exact, so that small losses keep their digits,
// and infinities meet as they do in torch.
template <class C>
FASTGAN_INLINE C bce_loss(C x, C t, C w, C p) {
  const C positive = C(1) + (p - C(1)) * t;
  const C linear = (C(1) - t) * x + positive * select(x > C(0), C(0), -x);
  return w * (linear + positive * log1p_unit(exp_(-abs_(x))));
}

// d loss / d x = w ((1 - t) sigma(x) - p t sigma(-x)): for targets 0 and 1 nothing cancels.
template <class C>
FASTGAN_INLINE C bce_input_gradient(C x, C t, C w, C p) {
  const Sigmoids<C> s = sigmoids(x);
  return w * ((C(1) - t) * s.positive - p * t * s.negative);
}

// d loss / d t = w ((p - 1) softplus(-x) - x).
template <class C>
FASTGAN_INLINE C bce_target_gradient(C x, C w, C p) {
  return w * ((p - C(1)) * softplus_(-x) - x);
}

// What the kernels of every device take. Memory is contiguous; T is float, double, bfloat16 or float16.

// A tensor broadcast over the input: element i of the input meets data[i % period]. Null data is all ones.
template <class T>
struct Operand {
  const T* data;
  int64_t period;
};

template <class T>
struct BceArguments {
  int64_t n;
  const T* input;
  const T* target;
  Operand<T> weight;
  Operand<T> pos_weight;
};

}  // namespace fastgan
