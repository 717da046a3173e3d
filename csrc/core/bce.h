// Binary cross-entropy of a logit x against a target t, with a weight w and a positive weight p:
//   loss = w ((1 - t) x + (1 + (p - 1) t) softplus(-x))
// which is torch.nn.functional.binary_cross_entropy_with_logits.
#pragma once

#include "math.h"

namespace fastgan {

// Differences of infinities, and of NaN, are NaN.
template <class C>
FASTGAN_INLINE bool are_finite(C a, C b) {
  return (a - a) + (b - b) == C(0);
}

// The two large terms are added first: for targets 0 and 1 their sum is exact, so that small losses keep their digits,
// and infinities meet as they do in torch. What a weight that is not finite makes of a loss, infinity or NaN, hangs on
// whether rounding made it zero: there the terms are torch's, one by one.
template <class C>
FASTGAN_INLINE C bce_loss(C x, C t, C w, C p) {
  const C positive = C(1) + (p - C(1)) * t;
  const C opposite = select(x > C(0), C(0), -x);  // softplus(-x) without its small part
  const C small = log1p_unit(exp_(-abs_(x)));
  const C ours = w * (((C(1) - t) * x + positive * opposite) + positive * small);
  const C torchs = w * ((C(1) - t) * x - (-opposite - small) * positive);
  return select(are_finite(w, p), ours, torchs);
}

// d loss / d x = w ((1 - t) sigma(x) - p t sigma(-x)): for targets 0 and 1 nothing cancels.
template <class C>
FASTGAN_INLINE C bce_input_gradient(C x, C t, C w, C p) {
  const Sigmoids<C> s = sigmoids(x);
  const C ours = w * ((C(1) - t) * s.positive - p * t * s.negative);
  const C torchs = w * ((p * t + C(1) - t) * s.positive - p * t);
  return select(are_finite(w, p), ours, torchs);
}

// d loss / d t = w (p softplus(-x) - softplus(x)) = w ((p - 1) softplus(-x) - x).
template <class C>
FASTGAN_INLINE C bce_target_gradient(C x, C w, C p) {
  const C soft = softplus_(-x);
  const C ours = w * ((p - C(1)) * soft - x);
  const C torchs = w * select(p == C(1), -x, p * soft - softplus_(x));
  return select(are_finite(w, p) && are_finite(x, x), ours, torchs);
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
