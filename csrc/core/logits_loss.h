// The cross-entropy of a logit x against a constant target t, and its derivative, from one exponential. See bce.h for
// the formulas and the order of their terms.
#pragma once

#include "math.h"

namespace fastgan {

template <class C>
struct LossAndGradient {
  C loss;
  C gradient;
};

template <class C>
FASTGAN_INLINE LossAndGradient<C> logits_loss(C x, C t) {
  const Sigmoids<C> s = sigmoids(x);
  const C linear = (C(1) - t) * x + select(x > C(0), C(0), -x);
  return {linear + log1p_unit(s.exponential), (C(1) - t) * s.positive - t * s.negative};
}

// One batch of logits against one constant target: sign times the cross-entropy.
template <class T>
struct LogitsTerm {
  int64_t n;
  const T* logits;
  double target;
  double sign;
  double scale;  // of this term in the sum
  // Null, or where the n derivatives go, without scale. Not rounded to T, so that backward rounds once.
  compute_t<T>* gradient;
};

}  // namespace fastgan
