#include "logits_loss.h"

#include <vector>

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

namespace {

// The sum of chunk_sum(batch, begin, end) over the chunks of each batch, times factor(batch). All batches are one list
// of chunks, so that two small halves wake the threads once.
template <class Batch, class ChunkSum, class Factor>
double sum_over_chunks(const Batch* batches, int count, const ChunkSum& chunk_sum, const Factor& factor) {
  std::vector<int64_t> first_chunk(count + 1, 0);
  int64_t elements = 0;
  for (int k = 0; k < count; ++k) {
    first_chunk[k + 1] = first_chunk[k] + chunk_count(batches[k].n);
    elements += batches[k].n;
  }
  std::vector<double> partial(first_chunk[count]);
  for_chunks(first_chunk[count], elements, [&](int64_t chunk) {
    int k = 0;
    while (chunk >= first_chunk[k + 1]) ++k;
    const int64_t begin = (chunk - first_chunk[k]) * chunk_size;
    partial[chunk] = chunk_sum(batches[k], begin, std::min(batches[k].n, begin + chunk_size));
  });
  double total = 0;
  for (int k = 0; k < count; ++k) {
    double sum = 0;
    for (int64_t chunk = first_chunk[k]; chunk < first_chunk[k + 1]; ++chunk) sum += partial[chunk];
    total += factor(batches[k]) * sum;
  }
  return total;
}

}  // namespace

template <class T>
void logits_loss_sum(const Context&, LossTerm term, const LogitsTerm<T>* batches, int count, T* loss) {
  using C = compute_t<T>;
  with_loss(term, batches[0].minus != nullptr, [&](auto of, auto paired) {
    const auto chunk_sum = [of, paired](const LogitsTerm<T>& batch, int64_t begin, int64_t end) -> C {
      constexpr bool is_paired = decltype(paired)::value;
      const T *logits = batch.logits, *minus = batch.minus;
      C* gradient = batch.gradient;
      const C target = C(batch.target), sign = C(batch.sign);
      if (gradient == nullptr)
        return simd_sum<C>(
            begin, end, FASTGAN_BODY(i) { return of.at(logit_at<is_paired>(logits, minus, i), target).loss; });
      return simd_sum<C>(
          begin, end, FASTGAN_BODY(i) {
            const LossAndGradient<C> l = of.at(logit_at<is_paired>(logits, minus, i), target);
            gradient[i] = sign * l.gradient;
            return l.loss;
          });
    };
    const auto factor = [](const LogitsTerm<T>& batch) { return batch.sign * batch.scale; };
    store(loss, static_cast<C>(sum_over_chunks(batches, count, chunk_sum, factor)));
  });
}

template <class T>
void logits_loss_elementwise(const Context&, LossTerm term, const LogitsTerm<T>& batch, T* losses) {
  using C = compute_t<T>;
  const T *logits = batch.logits, *minus = batch.minus;
  C* gradient = batch.gradient;
  const C target = C(batch.target), sign = C(batch.sign);
  with_loss(term, minus != nullptr, [&](auto of, auto paired) {
    constexpr bool is_paired = decltype(paired)::value;
    for_ranges(batch.n, [=](int64_t begin, int64_t end) {
      if (gradient == nullptr)
        return simd_for(
            begin, end,
            FASTGAN_BODY(i) { store(losses + i, sign * of.at(logit_at<is_paired>(logits, minus, i), target).loss); });
      simd_for(
          begin, end, FASTGAN_BODY(i) {
            const LossAndGradient<C> l = of.at(logit_at<is_paired>(logits, minus, i), target);
            store(losses + i, sign * l.loss);
            gradient[i] = sign * l.gradient;
          });
    });
  });
}

template <class T>
void logits_loss_backward(const Context&, LossTerm term, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t stride, double scale, T* out, T* out_of_minus) {
  using C = compute_t<T>;
  const C s = C(scale);
  const auto run = [=](auto of, auto paired) {
    const auto write = [=](int64_t i, C factor) __attribute__((always_inline)) {
      const C value = scaled_gradient(of, gradient[i], factor);
      store(out + i, value);
      if constexpr (decltype(paired)::value) store(out_of_minus + i, -value);
    };
    for_ranges(n, [=](int64_t begin, int64_t end) {
      if (stride == 0) {
        const C g = load(grad_output) * s;
        return simd_for(begin, end, FASTGAN_BODY(i) { write(i, g); });
      }
      simd_for(begin, end, FASTGAN_BODY(i) { write(i, load(grad_output + i) * s); });
    });
  };
  // But for the hinge, all terms are scaled alike.
  if (term == LossTerm::hinge) return run(LossOf<LossTerm::hinge>{}, std::false_type{});
  if (out_of_minus == nullptr) return run(LossOf<LossTerm::linear>{}, std::false_type{});
  run(LossOf<LossTerm::cross_entropy>{}, std::true_type{});
}

template <class T>
void logits_loss_double_backward(const Context&, LossTerm term, const LogitsTangent<T>* batches, int count,
                                 const T* grad_output, int64_t stride, T* grad_grad_output) {
  using C = compute_t<T>;
  with_loss(term, batches[0].minus != nullptr, [&](auto of, auto paired) {
    constexpr bool is_paired = decltype(paired)::value;
    // The body of a loop: writes the derivatives by the logits, and gives that by grad_output, without sign and scale.
    const auto body_of = [of](const LogitsTangent<T>& batch) {
      const T *logits = batch.logits, *minus = batch.minus, *tangent = batch.tangent;
      const T* tangent_of_minus = batch.tangent_of_minus;
      T *out = batch.out, *out_of_minus = batch.out_of_minus;
      const C target = C(batch.target);
      return [=](int64_t i, C factor) __attribute__((always_inline)) {
        const C x = logit_at<is_paired>(logits, minus, i), c = logit_at<is_paired>(tangent, tangent_of_minus, i);
        const C second = is_bent(of) ? c * factor * of.second(x, target) : C(0);
        store(out + i, second);
        if constexpr (is_paired) store(out_of_minus + i, -second);
        return scaled_gradient(of, of.at(x, target).gradient, c);
      };
    };
    if (stride != 0) {
      const auto body = body_of(batches[0]);
      const C factor = C(batches[0].sign * batches[0].scale);
      return for_ranges(batches[0].n, [=](int64_t begin, int64_t end) {
        simd_for(
            begin, end,
            FASTGAN_BODY(i) { store(grad_grad_output + i, factor * body(i, load(grad_output + i) * factor)); });
      });
    }
    const C g = load(grad_output);
    const auto factor = [](const LogitsTangent<T>& batch) { return batch.sign * batch.scale; };
    const auto chunk_sum = [=](const LogitsTangent<T>& batch, int64_t begin, int64_t end) -> C {
      const auto body = body_of(batch);
      const C scaled = g * C(factor(batch));
      return simd_sum<C>(begin, end, FASTGAN_BODY(i) { return body(i, scaled); });
    };
    store(grad_grad_output, static_cast<C>(sum_over_chunks(batches, count, chunk_sum, factor)));
  });
}

#define FASTGAN_INSTANTIATE(T)                                                                                     \
  template void logits_loss_sum<T>(const Context&, LossTerm, const LogitsTerm<T>*, int, T*);                       \
  template void logits_loss_elementwise<T>(const Context&, LossTerm, const LogitsTerm<T>&, T*);                    \
  template void logits_loss_backward<T>(const Context&, LossTerm, int64_t, const compute_t<T>*, const T*, int64_t, \
                                        double, T*, T*);                                                           \
  template void logits_loss_double_backward<T>(const Context&, LossTerm, const LogitsTangent<T>*, int, const T*,   \
                                               int64_t, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
