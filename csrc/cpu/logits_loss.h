// CPU kernels of the GAN losses: terms of logits, or of the differences of two batches, against constant targets.
// Pointers are to contiguous memory; T is float, double, bfloat16 or float16.
#pragma once

#include <cstdint>

#include "../core/logits_loss.h"
#include "context.h"

namespace fastgan::cpu {

// loss = the scaled sum over all batches; and the gradients, in the same pass.
template <class T>
void logits_loss_sum(const Context&, LossTerm term, const LogitsTerm<T>* batches, int count, T* loss);

// The n losses, without scale, and the gradients, in one pass.
template <class T>
void logits_loss_elementwise(const Context&, LossTerm term, const LogitsTerm<T>& batch, T* losses);

// out = gradient * (grad_output * scale), and minus that where out_of_minus is not null; grad_output as in
// bce_backward.
template <class T>
void logits_loss_backward(const Context&, LossTerm term, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t grad_output_stride, double scale, T* out, T* out_of_minus);

// The derivatives of what logits_loss_backward makes, by the logits and by grad_output, in one pass. Where grad_output
// is one number (stride 0) so is its gradient, the sum over all batches; else there is one batch.
template <class T>
void logits_loss_double_backward(const Context&, LossTerm term, const LogitsTangent<T>* batches, int count,
                                 const T* grad_output, int64_t grad_output_stride, T* grad_grad_output);

}  // namespace fastgan::cpu
