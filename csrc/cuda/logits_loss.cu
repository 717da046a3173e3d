#include <stdexcept>
#include <string>

#include "elementwise.h"
#include "logits_loss.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

template <class T>
struct Term {
  LogitsTerm<T> term;
  bool aligned;
};

template <class T>
struct Terms {
  Term<T> list[max_logits_terms];
  int count;
};

// Elements a thread takes at a time: two vectors, both loaded before either is used. Of 16-bit logits one: two, with
// their gradients in float, spill registers.
template <class T>
constexpr int step = vector_length<T> * (sizeof(T) == 2 ? 1 : vectors_in_flight);

// The losses of one step's elements and, where asked for, their gradients. What lies past the end counts nothing.
template <class T>
__device__ __forceinline__ void losses_of(const Term<T>& t, int64_t i, compute_t<T> (&losses)[step<T>]) {
  using C = compute_t<T>;
  const C target = C(t.term.target), sign = C(t.term.sign);
  C x[step<T>], gradients[step<T>];
  load_elements(t.term.logits, i, t.term.n, t.aligned, x);
#pragma unroll
  for (int k = 0; k < step<T>; ++k) {
    const LossAndGradient<C> both = logits_loss(x[k], target);
    losses[k] = sign * both.loss;
    gradients[k] = sign * both.gradient;
  }
  if (t.term.gradient != nullptr) store_elements(t.term.gradient, i, t.term.n, t.aligned, gradients);
}

template <class T>
__global__ void __launch_bounds__(threads)
    logits_loss_sum_kernel(Terms<T> terms, double* partial, unsigned* counter, T* loss) {
  using C = compute_t<T>;
  double total = 0;
  for (int term = 0; term < terms.count; ++term) {
    const Term<T>& t = terms.list[term];
    double sum = 0;
    for_vectors<step<T>>(t.term.n, [&](int64_t i) {
      C losses[step<T>];
      losses_of(t, i, losses);
      C few = 0;
#pragma unroll
      for (int k = 0; k < step<T>; ++k) few += i + k < t.term.n ? losses[k] : C(0);
      sum += few;
    });
    total += t.term.scale * sum;
  }
  store_launch_sum<threads>(total, 1.0, partial, counter, loss);
}

template <class T>
__global__ void __launch_bounds__(threads) logits_loss_elementwise_kernel(Term<T> t, bool aligned, T* losses) {
  for_vectors<step<T>>(t.term.n, [&](int64_t i) {
    compute_t<T> values[step<T>];
    losses_of(t, i, values);
    store_elements(losses, i, t.term.n, aligned, values);
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    logits_loss_backward_kernel(int64_t n, const compute_t<T>* gradient, const T* grad_output, bool one_grad_output,
                                double scale, bool aligned, T* out) {
  using C = compute_t<T>;
  const C s = C(scale), g = one_grad_output ? load(grad_output) * s : C(0);
  for_vectors<step<T>>(n, [&](int64_t i) {
    C values[step<T>], factors[step<T>];
    load_elements(gradient, i, n, aligned, values);
    if (!one_grad_output) load_elements(grad_output, i, n, aligned, factors);
#pragma unroll
    for (int k = 0; k < step<T>; ++k) values[k] *= one_grad_output ? g : factors[k] * s;
    store_elements(out, i, n, aligned, values);
  });
}

}  // namespace

template <class T>
void logits_loss_sum(const Context& context, const LogitsTerm<T>* given, int count, T* loss) {
  if (count > max_logits_terms)
    throw std::runtime_error("logits_loss: there may be at most " + std::to_string(max_logits_terms) +
                             " batches of logits a call on a GPU, not " + std::to_string(count));
  Terms<T> terms = {};
  int64_t longest = 0;
  for (int k = 0; k < count; ++k) {
    terms.list[k] = {given[k], all_aligned(given[k].logits, given[k].gradient)};
    longest = std::max(longest, given[k].n);
  }
  terms.count = count;
  const Grid grid = elementwise_grid<T>(context, longest);
  const bool one = grid.blocks.x == 1;
  launch(context, "logits_loss_sum", logits_loss_sum_kernel<T>, grid, terms,
         one ? nullptr : static_cast<double*>(context.scratch(grid.blocks.x * sizeof(double))),
         one ? nullptr : context.counters(), loss);
}

template <class T>
void logits_loss_elementwise(const Context& context, const LogitsTerm<T>& term, T* losses) {
  if (term.n == 0) return;
  launch(context, "logits_loss_elementwise", logits_loss_elementwise_kernel<T>, elementwise_grid<T>(context, term.n),
         Term<T>{term, all_aligned(term.logits, term.gradient)}, all_aligned(losses), losses);
}

template <class T>
void logits_loss_backward(const Context& context, int64_t n, const compute_t<T>* gradient, const T* grad_output,
                          int64_t stride, double scale, T* out) {
  if (n == 0) return;
  const bool one = stride == 0;
  launch(context, "logits_loss_backward", logits_loss_backward_kernel<T>, elementwise_grid<T>(context, n), n, gradient,
         grad_output, one, scale, all_aligned(gradient, one ? nullptr : grad_output, out), out);
}

#define FASTGAN_INSTANTIATE(T)                                                        \
  template void logits_loss_sum<T>(const Context&, const LogitsTerm<T>*, int, T*);    \
  template void logits_loss_elementwise<T>(const Context&, const LogitsTerm<T>&, T*); \
  template void logits_loss_backward<T>(const Context&, int64_t, const compute_t<T>*, const T*, int64_t, double, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
