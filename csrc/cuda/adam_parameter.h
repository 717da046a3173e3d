// Adam where the gradient is still in registers, for the kernels of the whole step.
#pragma once

#include "adam.h"

namespace fastgan::cuda {

__device__ __forceinline__ void set_count(const AdamDue& due, double done) {
  if (due.step != nullptr)
    *due.step = float(done);
  else
    *due.double_step = done;
}

// By one block.
template <int block_threads, class T>
__device__ __forceinline__ void prepare_adam(const AdamPreparation<T>& a) {
  for (int k = int(threadIdx.x); k < a.count; k += block_threads) {
    const AdamDue& d = a.due[k];
    const double done = (d.step != nullptr ? double{*d.step} : *d.double_step) + 1;
    set_count(d, done);
    a.steps[k] =
        adam_step<T>(d.options, d.learning_rate_tensor != nullptr ? *d.learning_rate_tensor : d.learning_rate, done);
  }
}

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
