// CPU kernels of the GAN losses: cross-entropies of logits against constant targets. Pointers are to contiguous memory;
// T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/logits_loss.h"

namespace fastgan::cpu {

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

// The scaled sum over all terms, and the gradients, in one pass.
template <class T>
double logits_loss_sum(const LogitsTerm<T>* terms, int count);

// The n losses, without scale, and the gradients, in one pass.
template <class T>
void logits_loss_elementwise(const LogitsTerm<T>& term, T* losses);

// out = gradient * (grad_output * scale); grad_output as in bce_backward.
template <class T>
void logits_loss_backward(int64_t n, const compute_t<T>* gradient, const T* grad_output, int64_t grad_output_stride,
                          double scale, T* out);

}  // namespace fastgan::cpu
