#include "logits_loss.h"

#include <type_traits>
#include <vector>

#include "parallel.h"
#include "strips.h"

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

// Loops over n values in the type of arithmetic. `minus` is of pairs alone.

// The sum of the terms; their derivatives go where `gradient` is not null.
template <bool is_paired, class Of, class C>
C sum_of_terms(Of of, int64_t n, const C* logits, const C* minus, C target, C sign, C* gradient) {
  if (gradient == nullptr)
    return simd_sum<C>(0, n, FASTGAN_BODY(i) { return of.at(logit_at<is_paired>(logits, minus, i), target).loss; });
  return simd_sum<C>(
      0, n, FASTGAN_BODY(i) {
        const LossAndGradient<C> l = of.at(logit_at<is_paired>(logits, minus, i), target);
        gradient[i] = sign * l.gradient;
        return l.loss;
      });
}

template <bool is_paired, class Of, class C>
void terms(Of of, int64_t n, const C* logits, const C* minus, C target, C sign, C* losses, C* gradient) {
  if (gradient == nullptr)
    return simd_for(
        0, n, FASTGAN_BODY(i) { losses[i] = sign * of.at(logit_at<is_paired>(logits, minus, i), target).loss; });
  simd_for(
      0, n, FASTGAN_BODY(i) {
        const LossAndGradient<C> l = of.at(logit_at<is_paired>(logits, minus, i), target);
        losses[i] = sign * l.loss;
        gradient[i] = sign * l.gradient;
      });
}

// Times a factor, and times an element of grad_output where that is not null.
template <bool is_paired, class Of, class C>
void scale_gradients(Of of, int64_t n, const C* gradient, const C* grad_output, C factor, C* out, C* out_of_minus) {
  const auto write = [=](int64_t i, C by) __attribute__((always_inline)) {
    const C value = scaled_gradient(of, gradient[i], by);
    out[i] = value;
    if constexpr (is_paired) out_of_minus[i] = -value;
  };
  if (grad_output == nullptr) return simd_for(0, n, FASTGAN_BODY(i) { write(i, factor); });
  simd_for(0, n, FASTGAN_BODY(i) { write(i, grad_output[i] * factor); });
}

// The derivatives by the logits, and that by grad_output: times `factor` an element each, where grad_output has one for
// each, else their sum.
template <bool is_paired, class Of, class C>
C second_terms(Of of, int64_t n, const C* logits, const C* minus, const C* tangent, const C* tangent_of_minus, C target,
               const C* grad_output, C factor, C* out, C* out_of_minus, C* grad_grad_output) {
  const auto body = [=](int64_t i, C by) __attribute__((always_inline)) {
    const C x = logit_at<is_paired>(logits, minus, i), c = logit_at<is_paired>(tangent, tangent_of_minus, i);
    const C second = is_bent(of) ? c * by * of.second(x, target) : C(0);
    out[i] = second;
    if constexpr (is_paired) out_of_minus[i] = -second;
    return scaled_gradient(of, of.at(x, target).gradient, c);
  };
  if (grad_output == nullptr) return simd_sum<C>(0, n, FASTGAN_BODY(i) { return body(i, factor); });
  simd_for(0, n, FASTGAN_BODY(i) { grad_grad_output[i] = factor * body(i, grad_output[i] * factor); });
  return C(0);
}

// Strips of logits, or of pairs of them; what is made of them may take their place.
template <class T, bool is_paired, int64_t size>
struct Logits {
  using C = compute_t<T>;
  using Second = std::conditional_t<is_paired, Strip<T, size>, std::false_type>;
  Strip<T, size> first;
  Second second;

  const C* read(const T* from, int64_t count) { return first.read(from, count); }
  const C* read_minus(const T* of_all, int64_t begin, int64_t count) {
    if constexpr (is_paired)
      return second.read(of_all + begin, count);
    else
      return nullptr;
  }
  C* place(T* to) { return first.place(to); }
  C* place_minus(T* of_all, int64_t begin) {
    if constexpr (is_paired)
      return second.place(of_all + begin);
    else
      return nullptr;
  }
  void write(T* to, T* of_minus, int64_t begin, int64_t count) {
    first.write(to + begin, count);
    if constexpr (is_paired) second.write(of_minus + begin, count);
  }
};

}  // namespace

template <class T>
void logits_loss_sum(const Context&, LossTerm term, const LogitsTerm<T>* batches, int count, T* loss) {
  using C = compute_t<T>;
  with_loss(term, batches[0].minus != nullptr, [&](auto of, auto paired) {
    const auto chunk_sum = [of, paired](const LogitsTerm<T>& batch, int64_t begin, int64_t end) -> C {
      constexpr bool is_paired = decltype(paired)::value;
      Logits<T, is_paired, chunk_size> at;  // the order of a sum depends on how many there are
      return sum_of_terms<is_paired>(of, end - begin, at.read(batch.logits + begin, end - begin),
                                     at.read_minus(batch.minus, begin, end - begin), C(batch.target), C(batch.sign),
                                     batch.gradient == nullptr ? nullptr : batch.gradient + begin);
    };
    const auto factor = [](const LogitsTerm<T>& batch) { return batch.sign * batch.scale; };
    store(loss, static_cast<C>(sum_over_chunks(batches, count, chunk_sum, factor)));
  });
}

template <class T>
void logits_loss_elementwise(const Context&, LossTerm term, const LogitsTerm<T>& batch, T* losses) {
  using C = compute_t<T>;
  with_loss(term, batch.minus != nullptr, [&](auto of, auto paired) {
    constexpr bool is_paired = decltype(paired)::value;
    for_ranges(batch.n, [&](int64_t begin, int64_t end) {
      Logits<T, is_paired, strip_size> at;
      for_strips<T>(begin, end, [&](int64_t first, int64_t count) {
        const C *const x = at.read(batch.logits + first, count), *const m = at.read_minus(batch.minus, first, count);
        terms<is_paired>(of, count, x, m, C(batch.target), C(batch.sign), at.place(losses + first),
                         batch.gradient == nullptr ? nullptr : batch.gradient + first);
        at.first.write(losses + first, count);
      });
    });
  });
}

template <class T>
void logits_loss_backward(const Context&, LossTerm term, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t stride, double scale, T* out, T* out_of_minus) {
  using C = compute_t<T>;
  const C factor = C(scale) * (stride == 0 ? load(grad_output) : C(1));
  const auto run = [=](auto of, auto paired) {
    constexpr bool is_paired = decltype(paired)::value;
    for_ranges(n, [=](int64_t begin, int64_t end) {
      Strip<T> by;
      Logits<T, is_paired, strip_size> to;
      for_strips<T>(begin, end, [&](int64_t first, int64_t count) {
        scale_gradients<is_paired>(of, count, gradient + first,
                                   stride == 0 ? nullptr : by.read(grad_output + first, count), factor,
                                   to.place(out + first), to.place_minus(out_of_minus, first));
        to.write(out, out_of_minus, first, count);
      });
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
    // `by` and `grad_by` are of n elements, or null: then the derivative by grad_output is what is returned, a sum
    // without sign and scale.
    const auto strip = [of](auto& at, auto& tangents, const LogitsTangent<T>& batch, int64_t begin, int64_t n,
                            const C* by, C factor, C* grad_by) {
      const C *const x = at.read(batch.logits + begin, n), *const m = at.read_minus(batch.minus, begin, n);
      const C *const t = tangents.read(batch.tangent + begin, n), *const t_of_m = tangents.read_minus(
                                                                      batch.tangent_of_minus, begin, n);
      const C sum = second_terms<is_paired>(of, n, x, m, t, t_of_m, C(batch.target), by, factor,
                                            tangents.place(batch.out + begin),
                                            tangents.place_minus(batch.out_of_minus, begin), grad_by);
      tangents.write(batch.out, batch.out_of_minus, begin, n);
      return sum;
    };
    const auto factor = [](const LogitsTangent<T>& batch) { return batch.sign * batch.scale; };
    if (stride != 0)
      return for_ranges(batches[0].n, [&](int64_t begin, int64_t end) {
        Logits<T, is_paired, strip_size> at, tangents;
        Strip<T> given;
        for_strips<T>(begin, end, [&](int64_t first, int64_t n) {
          const C* const by = given.read(grad_output + first, n);
          strip(at, tangents, batches[0], first, n, by, C(factor(batches[0])), given.place(grad_grad_output + first));
          given.write(grad_grad_output + first, n);
        });
      });
    const C g = load(grad_output);
    const auto chunk_sum = [&](const LogitsTangent<T>& batch, int64_t begin, int64_t end) -> C {
      Logits<T, is_paired, chunk_size> at, tangents;  // the order of a sum depends on how many there are
      return strip(at, tangents, batch, begin, end - begin, nullptr, g * C(factor(batch)), nullptr);
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
