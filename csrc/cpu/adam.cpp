#include "adam.h"

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

template <class T>
void adam(const Context&, const AdamTensor<T>* tensors, int count, const AdamOptions& o, double learning_rate,
          const float* learning_rate_tensor) {
  using C = compute_t<T>;
  if (learning_rate_tensor != nullptr) learning_rate = *learning_rate_tensor;
  for (int k = 0; k < count; ++k) {
    const AdamTensor<T> t = tensors[k];
    const AdamStep<C> step = adam_step<C>(o, learning_rate, double{*t.step} + 1);
    for_ranges(t.n, [&](int64_t begin, int64_t end) {
      const AdamOptions options = o;
      const AdamStep<C> s = step;
      simd_for(
          begin, end, FASTGAN_BODY(i) {
            C param = load(t.param + i), average = load(t.exp_avg + i), square = load(t.exp_avg_sq + i);
            C most = options.amsgrad ? load(t.max_exp_avg_sq + i) : C(0);
            adam_update(options, s, load(t.grad + i), param, average, square, most);
            store(t.param + i, param);
            store(t.exp_avg + i, average);
            store(t.exp_avg_sq + i, square);
            if (options.amsgrad) store(t.max_exp_avg_sq + i, most);
          });
    });
    *t.step += 1;
  }
}

#define FASTGAN_INSTANTIATE(T) \
  template void adam<T>(const Context&, const AdamTensor<T>*, int, const AdamOptions&, double, const float*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
FASTGAN_INSTANTIATE(bfloat16)
FASTGAN_INSTANTIATE(float16)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
