// CPU kernels of the GAN losses: cross-entropies of logits against constant targets. Pointers are to contiguous memory;
// T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/logits_loss.h"
#include "context.h"

namespace fastgan::cpu {

// loss = the scaled sum over all terms; and the gradients, in the same pass.
template <class T>
void logits_loss_sum(const Context&, const LogitsTerm<T>* terms, int count, T* loss);

// The n losses, without scale, and the gradients, in one pass.
template <class T>
void logits_loss_elementwise(const Context&, const LogitsTerm<T>& term, T* losses);

// out = gradient * (grad_output * scale); grad_output as in bce_backward.
template <class T>
void logits_loss_backward(const Context&, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t grad_output_stride, double scale, T* out);

}  // namespace fastgan::cpu
