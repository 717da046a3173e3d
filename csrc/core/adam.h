// Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), with AMSGrad (Reddi et al. 2018) and decoupled weight decay
// (AdamW: Loshchilov and Hutter 2019), for one element: torch.optim.Adam and AdamW.
#pragma once

#include "math.h"

namespace fastgan {

struct AdamOptions {
  double beta1, beta2, weight_decay, eps;
  bool amsgrad, maximize, decoupled_weight_decay;
};

// One of an optimizer's groups of parameters, as the user has set it.
struct AdamGroup {
  double learning_rate = 0;
  AdamOptions options{};
};

// What is the same for every element of a tensor, in the type of arithmetic.
template <class C>
struct AdamStep {
  C sign;                 // of the gradient: -1 to maximize
  C weight_decay;         // added to the gradient: of Adam
  C kept;                 // of the parameter: of AdamW
  C rate1, beta2, rate2;  // 1 - beta1; beta2 and 1 - beta2
  C step_size, eps;       // times the root of exp_avg_sq's bias correction, so that an element has one quotient
};

// A parameter, contiguous, and what one update needs. A null value: the layer has no such parameter.
template <class T>
struct AdamParameter {
  T* value = nullptr;
  T* exp_avg = nullptr;  // null where the parameter is frozen
  T* exp_avg_sq = nullptr;
  T* max_exp_avg_sq = nullptr;        // null but with amsgrad
  T* average = nullptr;               // its exponential moving average, or null
  const AdamStep<T>* step = nullptr;  // where the kernels run: of the update that is due

  FASTGAN_INLINE bool is_updated() const { return exp_avg != nullptr; }
};

// Of the update with number `step`, counted from one.
template <class C>
FASTGAN_INLINE AdamStep<C> adam_step(const AdamOptions& o, double learning_rate, double step) {
  const double correction1 = 1 - std::pow(o.beta1, step), root_correction2 = std::sqrt(1 - std::pow(o.beta2, step));
  const bool decoupled = o.decoupled_weight_decay;
  return {C(o.maximize ? -1 : 1),
          C(decoupled ? 0 : o.weight_decay),
          C(decoupled ? 1 - learning_rate * o.weight_decay : 1),
          C(1 - o.beta1),
          C(o.beta2),
          C(1 - o.beta2),
          C(learning_rate / correction1 * root_correction2),
          C(o.eps * root_correction2)};
}

FASTGAN_INLINE float sqrt_(float x) { return ::sqrtf(x); }
FASTGAN_INLINE double sqrt_(double x) { return ::sqrt(x); }

// Without branches, so that loops over it vectorise; `amsgrad` is constant where that matters.
template <class C>
FASTGAN_INLINE void adam_update(const AdamStep<C>& s, bool amsgrad, C grad, C& param, C& exp_avg, C& exp_avg_sq,
                                C& max_exp_avg_sq) {
  // An infinite parameter would make a weight decay of zero NaN.
  const C g = select(s.weight_decay == C(0), s.sign * grad, s.sign * grad + s.weight_decay * param);
  exp_avg = lerp(exp_avg, g, s.rate1);
  exp_avg_sq = s.beta2 * exp_avg_sq + s.rate2 * g * g;
  if (amsgrad) max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
  const C second = amsgrad ? max_exp_avg_sq : exp_avg_sq;
  param = param * s.kept - s.step_size * exp_avg / (sqrt_(second) + s.eps);
}

}  // namespace fastgan
