// The CPU kernel of Adam and AdamW over a list of tensors. T is float, double, bfloat16 or float16.
#pragma once

#include "../core/adam.h"
#include "context.h"

namespace fastgan::cpu {

// Updates param and the moments of each tensor, and adds one to its step. The learning rate is *learning_rate_tensor
// where that is not null.
template <class T>
void adam(const Context& context, const AdamTensor<T>* tensors, int count, const AdamOptions& options,
          double learning_rate, const float* learning_rate_tensor);

}  // namespace fastgan::cpu
