// Adam (Kingma and Ba 2015, arXiv:1412.6980, algorithm 1), with AMSGrad (Reddi et al. 2018) and decoupled weight decay
// (AdamW: Loshchilov and Hutter 2019), for one element: torch.optim.Adam and AdamW.
#pragma once

#include "math.h"

namespace fastgan {

struct AdamOptions {
  double beta1, beta2, weight_decay, eps;
  bool amsgrad, maximize, decoupled_weight_decay;
};

// One tensor's part; memory is contiguous. step counts the updates, and is one less than the coming one's number.
template <class T>
struct AdamTensor {
  int64_t n;
  T* param;
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* max_exp_avg_sq;  // null but with amsgrad
  float* step;
};

// What is the same for every element of a tensor.
template <class C>
struct AdamStep {
  C learning_rate, step_size, root_correction;
};

// Of the update with number `step`, counted from one.
template <class C>
FASTGAN_INLINE AdamStep<C> adam_step(const AdamOptions& o, double learning_rate, double step) {
  const double correction1 = 1 - std::pow(o.beta1, step), correction2 = 1 - std::pow(o.beta2, step);
  return {C(learning_rate), C(learning_rate / correction1), C(std::sqrt(correction2))};
}

FASTGAN_INLINE float sqrt_(float x) { return ::sqrtf(x); }
FASTGAN_INLINE double sqrt_(double x) { return ::sqrt(x); }

template <class C>
FASTGAN_INLINE void adam_update(const AdamOptions& o, const AdamStep<C>& step, C grad, C& param, C& exp_avg,
                                C& exp_avg_sq, C& max_exp_avg_sq) {
  if (o.maximize) grad = -grad;
  if (o.decoupled_weight_decay)
    param *= C(1) - step.learning_rate * C(o.weight_decay);
  else
    grad += C(o.weight_decay) * param;
  exp_avg += C(1 - o.beta1) * (grad - exp_avg);
  exp_avg_sq = C(o.beta2) * exp_avg_sq + C(1 - o.beta2) * grad * grad;
  if (o.amsgrad) max_exp_avg_sq = select(max_exp_avg_sq < exp_avg_sq, exp_avg_sq, max_exp_avg_sq);
  const C second = o.amsgrad ? max_exp_avg_sq : exp_avg_sq;
  param -= step.step_size * exp_avg / (sqrt_(second) / step.root_correction + C(o.eps));
}

}  // namespace fastgan
