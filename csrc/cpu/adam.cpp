#include "adam.h"

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

namespace {

template <bool amsgrad, class T>
void update(const AdamTensor<T>& tensor, const AdamStep<compute_t<T>>& step) {
  using C = compute_t<T>;
  T *param = tensor.param, *exp_avg = tensor.exp_avg, *exp_avg_sq = tensor.exp_avg_sq, *most = tensor.max_exp_avg_sq;
  const T* grad = tensor.grad;
  for_ranges(tensor.n, [&](int64_t begin, int64_t end) {
    const AdamStep<C> s = step;
    simd_for(
        begin, end, FASTGAN_BODY(i) {
          C p = load(param + i), average = load(exp_avg + i), square = load(exp_avg_sq + i), largest = C(0);
          if constexpr (amsgrad) largest = load(most + i);
          adam_update(s, amsgrad, load(grad + i), p, average, square, largest);
          store(param + i, p);
          store(exp_avg + i, average);
          store(exp_avg_sq + i, square);
          if constexpr (amsgrad) store(most + i, largest);
        });
  });
}

}  // namespace

template <class T>
void adam(const Context&, const AdamTensor<T>* tensors, int count, const AdamOptions& o, double learning_rate,
          const float* learning_rate_tensor) {
  if (learning_rate_tensor != nullptr) learning_rate = *learning_rate_tensor;
  for (int k = 0; k < count; ++k) {
    const auto step = adam_step<compute_t<T>>(o, learning_rate, double{*tensors[k].step} + 1);
    o.amsgrad ? update<true>(tensors[k], step) : update<false>(tensors[k], step);
    *tensors[k].step += 1;
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
