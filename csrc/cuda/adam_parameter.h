// Adam where the gradient is still in registers, for the kernels of the whole step.
#pragma once

#include "../core/adam.h"
#include "platform.h"

namespace fastgan::cuda {

// One update of a parameter's element, whose gradient never reached memory.
template <class T>
__device__ __forceinline__ void update(const AdamParameter<T>& t, const AdamStep<T>& step, int64_t place, T gradient,
                                       T average_rate) {
  T value = t.value[place], exp_avg = t.exp_avg[place], exp_avg_sq = t.exp_avg_sq[place];
  T most = t.max_exp_avg_sq != nullptr ? t.max_exp_avg_sq[place] : T(0);
  adam_update(step, t.max_exp_avg_sq != nullptr, gradient, value, exp_avg, exp_avg_sq, most);
  t.value[place] = value;
  t.exp_avg[place] = exp_avg;
  t.exp_avg_sq[place] = exp_avg_sq;
  if (t.max_exp_avg_sq != nullptr) t.max_exp_avg_sq[place] = most;
  if (t.average != nullptr) t.average[place] = lerp(t.average[place], value, average_rate);
}

}  // namespace fastgan::cuda
