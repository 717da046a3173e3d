#include "bce.h"

#include <vector>

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

namespace {

// A chunk of a broadcast operand, spelled out in the type of arithmetic, so that the loops over it are plain.
template <class T>
class OperandChunk {
 public:
  using C = compute_t<T>;

  OperandChunk(const Operand<T>& operand, int64_t begin, int64_t end) : begin_(begin) {
    if (operand.data == nullptr || operand.period == 1) {
      std::fill_n(values_, end - begin, operand.data == nullptr ? C(1) : load(operand.data));
      return;
    }
    for (int64_t i = begin, k = begin % operand.period; i < end; ++i, k = k + 1 == operand.period ? 0 : k + 1)
      values_[i - begin] = load(operand.data + k);
  }

  // Multiplies by scale and by data, which has one element (stride 0) or one for each of the input (stride 1).
  void multiply(const T* data, int64_t stride, C scale, int64_t end) {
    C* values = values_ - begin_;
    if (stride == 0) scale *= load(data);
    if (stride == 0) return simd_for(begin_, end, FASTGAN_BODY(i) { values[i] *= scale; });
    simd_for(begin_, end, FASTGAN_BODY(i) { values[i] *= load(data + i) * scale; });
  }

  // Indexed like the input: from(i) with i in [begin, end).
  const C* from_input_index() const { return values_ - begin_; }

 private:
  int64_t begin_;
  C values_[chunk_size];
};

// Calls f(begin, end, weight, pos_weight) for a piece of the input; the weights are null where both are all ones.
template <class T, class F>
void with_weights(const BceArguments<T>& a, int64_t begin, int64_t end, const F& f) {
  if (a.weight.data == nullptr && a.pos_weight.data == nullptr)
    return f(static_cast<const compute_t<T>*>(nullptr), static_cast<const compute_t<T>*>(nullptr));
  const OperandChunk<T> weight(a.weight, begin, end), pos_weight(a.pos_weight, begin, end);
  f(weight.from_input_index(), pos_weight.from_input_index());
}

// Adds f(chunk begin, chunk end) over all chunks, in order.
template <class F>
double sum_chunks(int64_t n, const F& f) {
  std::vector<double> partial(chunk_count(n));
  for_chunks(chunk_count(n), n,
             [&](int64_t chunk) { partial[chunk] = f(chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size)); });
  double sum = 0;
  for (const double value : partial) sum += value;
  return sum;
}

}  // namespace

template <class T>
void bce_elementwise(const Context&, const BceArguments<T>& a, T* losses) {
  using C = compute_t<T>;
  const T *input = a.input, *target = a.target;
  for_ranges(a.n, [&](int64_t begin, int64_t end) {
    with_weights(a, begin, end, [&](const C* w, const C* p) {
      if (w == nullptr)
        simd_for(
            begin, end,
            FASTGAN_BODY(i) { store(losses + i, bce_loss(load(input + i), load(target + i), C(1), C(1))); });
      else
        simd_for(
            begin, end,
            FASTGAN_BODY(i) { store(losses + i, bce_loss(load(input + i), load(target + i), w[i], p[i])); });
    });
  });
}

template <class T>
void bce_sum(const Context&, const BceArguments<T>& a, double scale, T* loss) {
  using C = compute_t<T>;
  const T *input = a.input, *target = a.target;
  const double total = sum_chunks(a.n, [&](int64_t begin, int64_t end) {
    double sum = 0;
    with_weights(a, begin, end, [&](const C* w, const C* p) {
      if (w == nullptr)
        sum = simd_sum<C>(
            begin, end, FASTGAN_BODY(i) { return bce_loss(load(input + i), load(target + i), C(1), C(1)); });
      else
        sum = simd_sum<C>(
            begin, end, FASTGAN_BODY(i) { return bce_loss(load(input + i), load(target + i), w[i], p[i]); });
    });
    return sum;
  });
  store(loss, static_cast<C>(total * scale));
}

template <class T>
void bce_backward(const Context&, const BceArguments<T>& a, const T* grad_output, int64_t stride, double scale,
                  T* grad_input, T* grad_target) {
  using C = compute_t<T>;
  const T *input = a.input, *target = a.target;
  const C s = C(scale);
  const bool plain = stride == 0 && a.weight.data == nullptr && a.pos_weight.data == nullptr;
  for_ranges(a.n, [&](int64_t begin, int64_t end) {
    if (plain && grad_target == nullptr) {
      const C g = load(grad_output) * s;
      return simd_for(
          begin, end, FASTGAN_BODY(i) {
            store(grad_input + i, g * bce_input_gradient(load(input + i), load(target + i), C(1), C(1)));
          });
    }
    // The gradient of the output is one more weight.
    OperandChunk<T> weight(a.weight, begin, end);
    weight.multiply(grad_output, stride, s, end);
    const OperandChunk<T> pos_weight(a.pos_weight, begin, end);
    const C *w = weight.from_input_index(), *p = pos_weight.from_input_index();
    if (grad_input != nullptr)
      simd_for(
          begin, end, FASTGAN_BODY(i) {
            store(grad_input + i, bce_input_gradient(load(input + i), load(target + i), w[i], p[i]));
          });
    if (grad_target != nullptr)
      simd_for(
          begin, end, FASTGAN_BODY(i) { store(grad_target + i, bce_target_gradient(load(input + i), w[i], p[i])); });
  });
}

#define FASTGAN_INSTANTIATE(T)                                                  \
  template void bce_elementwise<T>(const Context&, const BceArguments<T>&, T*); \
  template void bce_sum<T>(const Context&, const BceArguments<T>&, double, T*); \
  template void bce_backward<T>(const Context&, const BceArguments<T>&, const T*, int64_t, double, T*, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
