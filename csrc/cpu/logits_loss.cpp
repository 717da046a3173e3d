#include "logits_loss.h"

#include <vector>

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

template <class T>
void logits_loss_sum(const Context&, const LogitsTerm<T>* terms, int count, T* loss) {
  using C = compute_t<T>;
  // All terms are one list of chunks, so that two small halves wake the threads once.
  std::vector<int64_t> first_chunk(count + 1, 0);
  int64_t elements = 0;
  for (int k = 0; k < count; ++k) {
    first_chunk[k + 1] = first_chunk[k] + chunk_count(terms[k].n);
    elements += terms[k].n;
  }
  std::vector<double> partial(first_chunk[count]);
  for_chunks(first_chunk[count], elements, [&](int64_t chunk) {
    int k = 0;
    while (chunk >= first_chunk[k + 1]) ++k;
    const T* logits = terms[k].logits;
    C* gradient = terms[k].gradient;
    const C target = C(terms[k].target), sign = C(terms[k].sign);
    const int64_t begin = (chunk - first_chunk[k]) * chunk_size, end = std::min(terms[k].n, begin + chunk_size);
    if (gradient == nullptr)
      partial[chunk] = simd_sum<C>(begin, end, FASTGAN_BODY(i) { return logits_loss(load(logits + i), target).loss; });
    else
      partial[chunk] = simd_sum<C>(
          begin, end, FASTGAN_BODY(i) {
            const LossAndGradient<C> l = logits_loss(load(logits + i), target);
            gradient[i] = sign * l.gradient;
            return l.loss;
          });
  });
  double total = 0;
  for (int k = 0; k < count; ++k) {
    double sum = 0;
    for (int64_t chunk = first_chunk[k]; chunk < first_chunk[k + 1]; ++chunk) sum += partial[chunk];
    total += terms[k].sign * terms[k].scale * sum;
  }
  store(loss, static_cast<C>(total));
}

template <class T>
void logits_loss_elementwise(const Context&, const LogitsTerm<T>& term, T* losses) {
  using C = compute_t<T>;
  const T* logits = term.logits;
  C* gradient = term.gradient;
  const C target = C(term.target), sign = C(term.sign);
  for_ranges(term.n, [&](int64_t begin, int64_t end) {
    if (gradient == nullptr)
      simd_for(begin, end, FASTGAN_BODY(i) { store(losses + i, sign * logits_loss(load(logits + i), target).loss); });
    else
      simd_for(
          begin, end, FASTGAN_BODY(i) {
            const LossAndGradient<C> l = logits_loss(load(logits + i), target);
            store(losses + i, sign * l.loss);
            gradient[i] = sign * l.gradient;
          });
  });
}

template <class T>
void logits_loss_backward(const Context&, int64_t n, const compute_t<T>* gradient, const T* grad_output, int64_t stride,
                          double scale, T* out) {
  using C = compute_t<T>;
  const C s = C(scale);
  for_ranges(n, [&](int64_t begin, int64_t end) {
    if (stride == 0) {
      const C g = load(grad_output) * s;
      return simd_for(begin, end, FASTGAN_BODY(i) { store(out + i, gradient[i] * g); });
    }
    simd_for(begin, end, FASTGAN_BODY(i) { store(out + i, gradient[i] * (load(grad_output + i) * s)); });
  });
}

#define FASTGAN_INSTANTIATE(T)                                                        \
  template void logits_loss_sum<T>(const Context&, const LogitsTerm<T>*, int, T*);    \
  template void logits_loss_elementwise<T>(const Context&, const LogitsTerm<T>&, T*); \
  template void logits_loss_backward<T>(const Context&, int64_t, const compute_t<T>*, const T*, int64_t, double, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
