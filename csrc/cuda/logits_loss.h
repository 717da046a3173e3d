// CUDA kernels of the GAN losses, one launch each: csrc/cpu/logits_loss.h on the device.
#pragma once

#include "../core/logits_loss.h"
#include "platform.h"

namespace fastgan::cuda {

// At most this many terms a call.
constexpr int max_logits_terms = 16;

template <class T>
void logits_loss_sum(const Context& context, const LogitsTerm<T>* terms, int count, T* loss);

template <class T>
void logits_loss_elementwise(const Context& context, const LogitsTerm<T>& term, T* losses);

template <class T>
void logits_loss_backward(const Context& context, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t grad_output_stride, double scale, T* out);

}  // namespace fastgan::cuda
