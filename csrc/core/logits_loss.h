// What a GAN's losses are made of: functions of one number, a logit or the difference of two, with their derivatives.
// Which loss is made of which stands in gan_losses.h.
#pragma once

#include <type_traits>

#include "math.h"

// Each with a number t, its target:
//   cross_entropy  of a logit against t in [0, 1]; see bce.h for the formula and the order of its terms
//   hinge          relu(1 - t x), t being 1 or -1
//   linear         -t x, t being 1 or -1
//   square         (x - t)^2 / 2
#define FASTGAN_LOSS_TERMS(X) X(cross_entropy) X(hinge) X(linear) X(square)

namespace fastgan {

enum class LossTerm : int { FASTGAN_LOSS_TERMS(FASTGAN_ENUMERATOR) };
constexpr const char* loss_term_names[] = {FASTGAN_LOSS_TERMS(FASTGAN_NAME)};

template <class C>
struct LossAndGradient {
  C loss;
  C gradient;
};

template <LossTerm term>
struct LossOf;

template <>
struct LossOf<LossTerm::cross_entropy> {  // both from one exponential
  template <class C>
  static FASTGAN_INLINE LossAndGradient<C> at(C x, C t) {
    const Sigmoids<C> s = sigmoids(x);
    const C linear = (C(1) - t) * x + select(x > C(0), C(0), -x);
    return {linear + log1p_unit(s.exponential), (C(1) - t) * s.positive - t * s.negative};
  }
  template <class C>
  static FASTGAN_INLINE C second(C x, C) {
    const Sigmoids<C> s = sigmoids(x);
    return s.positive * s.negative;
  }
};

template <>
struct LossOf<LossTerm::hinge> {  // the comparisons are those of torch's relu, so that NaN ends up where torch puts it
  template <class C>
  static FASTGAN_INLINE LossAndGradient<C> at(C x, C t) {
    const C margin = C(1) - t * x;
    return {select(margin < C(0), C(0), margin), select(margin <= C(0), C(0), -t)};
  }
  template <class C>
  static FASTGAN_INLINE C second(C, C) {
    return C(0);
  }
};

template <>
struct LossOf<LossTerm::linear> {
  template <class C>
  static FASTGAN_INLINE LossAndGradient<C> at(C x, C t) {
    return {-t * x, -t};
  }
  template <class C>
  static FASTGAN_INLINE C second(C, C) {
    return C(0);
  }
};

template <>
struct LossOf<LossTerm::square> {
  template <class C>
  static FASTGAN_INLINE LossAndGradient<C> at(C x, C t) {
    const C difference = x - t;
    return {C(0.5) * difference * difference, difference};
  }
  template <class C>
  static FASTGAN_INLINE C second(C, C) {
    return C(1);
  }
};

// Calls f with the LossOf of a run-time term.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
FASTGAN_INLINE void with_loss_term(LossTerm term, F&& f) {
  switch (term) {
#define FASTGAN_CASE(name) \
  case LossTerm::name:     \
    return f(LossOf<LossTerm::name>{});
    FASTGAN_LOSS_TERMS(FASTGAN_CASE)
#undef FASTGAN_CASE
  }
}

// Calls f(LossOf, paired), where paired is a constant: of a pair of batches the term is of their differences. Pairs are
// of the cross-entropy alone.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
FASTGAN_INLINE void with_loss(LossTerm term, bool is_paired, F&& f) {
  if (is_paired) return f(LossOf<LossTerm::cross_entropy>{}, std::true_type{});
  with_loss_term(term, [&](auto loss) { f(loss, std::false_type{}); });
}

// Whether the second derivative is not zero everywhere.
template <LossTerm term>
constexpr bool is_bent(LossOf<term>) {
  return term == LossTerm::cross_entropy || term == LossTerm::square;
}

// A gradient times a factor. Where a hinge has nothing to give, that is zero for an infinite factor too, as in torch's
// relu.
template <LossTerm term, class C>
FASTGAN_INLINE C scaled_gradient(LossOf<term>, C gradient, C factor) {
  if constexpr (term == LossTerm::hinge) return select(gradient == C(0), C(0), gradient * factor);
  return gradient * factor;
}

// Of the cross-entropy.
template <class C>
FASTGAN_INLINE LossAndGradient<C> logits_loss(C x, C t) {
  return LossOf<LossTerm::cross_entropy>::at(x, t);
}

// One batch of logits against one constant target: sign times a term.
template <class T>
struct LogitsTerm {
  int64_t n;
  const T* logits;
  const T* minus;  // null, or, of a pair, what is subtracted from the logits first
  double target;
  double sign;
  double scale;  // of this batch in the sum
  // Null, or where the n derivatives by the logits go, without scale; those by `minus` are the negative of them. Not
  // rounded to T, so that backward rounds once.
  compute_t<T>* gradient;
};

// The same batch where its gradients, times grad_output, are differentiated.
template <class T>
struct LogitsTangent {
  int64_t n;
  const T* logits;
  const T* minus;
  const T* tangent;           // the cotangents of the gradients by the logits
  const T* tangent_of_minus;  // and by `minus`
  double target;
  double sign;
  double scale;
  T* out;  // where the n derivatives by the logits go
  T* out_of_minus;
};

// What a term is of.
template <bool is_paired, class T>
FASTGAN_INLINE compute_t<T> logit_at(const T* logits, const T* minus, int64_t i) {
  if constexpr (is_paired) return load(logits + i) - load(minus + i);
  return load(logits + i);
}

}  // namespace fastgan
