// CUDA kernels of the GAN losses, one launch each: csrc/cpu/logits_loss.h on the device.
#pragma once

#include "../core/logits_loss.h"
#include "platform.h"

namespace fastgan::cuda {

// At most this many batches a call.
constexpr int max_logits_terms = 16;

template <class T>
void logits_loss_sum(const Context& context, LossTerm term, const LogitsTerm<T>* batches, int count, T* loss);

template <class T>
void logits_loss_elementwise(const Context& context, LossTerm term, const LogitsTerm<T>& batch, T* losses);

template <class T>
void logits_loss_backward(const Context& context, LossTerm term, int64_t n, const compute_t<T>* gradient,
                          const T* grad_output, int64_t grad_output_stride, double scale, T* out, T* out_of_minus);

template <class T>
void logits_loss_double_backward(const Context& context, LossTerm term, const LogitsTangent<T>* batches, int count,
                                 const T* grad_output, int64_t grad_output_stride, T* grad_grad_output);

}  // namespace fastgan::cuda
