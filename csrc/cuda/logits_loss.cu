#include <stdexcept>
#include <string>

#include "elementwise.h"
#include "logits_loss.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

// One batch, LogitsTerm or LogitsTangent, and whether all its memory can be read in vectors.
template <class Batch>
struct Aligned {
  Batch batch;
  bool aligned;
};

template <class Batch>
struct Batches {
  Aligned<Batch> list[max_logits_terms];
  int count;
};

// Elements a thread takes at a time: two vectors, both loaded before either is used. Of 16-bit logits one: two, with
// their gradients in float, spill registers.
template <class T>
constexpr int step = vector_length<T> * (sizeof(T) == 2 ? 1 : vectors_in_flight);

// What a term is of: a batch, or, of a pair, the difference of two.
template <bool is_paired, class T, int length>
__device__ __forceinline__ void load_logits(const T* logits, const T* minus, int64_t i, int64_t n, bool aligned,
                                            compute_t<T> (&out)[length]) {
  load_elements(logits, i, n, aligned, out);
  if constexpr (is_paired) {
    compute_t<T> others[length];
    load_elements(minus, i, n, aligned, others);
#pragma unroll
    for (int k = 0; k < length; ++k) out[k] -= others[k];
  }
}

// The losses of one step's elements and, where asked for, their gradients. What lies past the end counts nothing.
template <LossTerm term, bool is_paired, class T>
__device__ __forceinline__ void losses_of(const Aligned<LogitsTerm<T>>& of, int64_t i,
                                          compute_t<T> (&losses)[step<T>]) {
  using C = compute_t<T>;
  const LogitsTerm<T>& batch = of.batch;
  const C target = C(batch.target), sign = C(batch.sign);
  C x[step<T>], gradients[step<T>];
  load_logits<is_paired>(batch.logits, batch.minus, i, batch.n, of.aligned, x);
#pragma unroll
  for (int k = 0; k < step<T>; ++k) {
    const LossAndGradient<C> both = LossOf<term>::at(x[k], target);
    losses[k] = sign * both.loss;
    gradients[k] = sign * both.gradient;
  }
  if (batch.gradient != nullptr) store_elements(batch.gradient, i, batch.n, of.aligned, gradients);
}

template <class T, LossTerm term, bool is_paired>
__global__ void __launch_bounds__(threads)
    logits_loss_sum_kernel(Batches<LogitsTerm<T>> batches, double* partial, unsigned* counter, T* loss) {
  using C = compute_t<T>;
  double total = 0;
  for (int which = 0; which < batches.count; ++which) {
    const Aligned<LogitsTerm<T>>& of = batches.list[which];
    double sum = 0;
    for_vectors<step<T>>(of.batch.n, [&](int64_t i) {
      C losses[step<T>];
      losses_of<term, is_paired>(of, i, losses);
      C few = 0;
#pragma unroll
      for (int k = 0; k < step<T>; ++k) few += i + k < of.batch.n ? losses[k] : C(0);
      sum += few;
    });
    total += of.batch.scale * sum;
  }
  store_launch_sum<threads>(total, 1.0, partial, counter, loss);
}

template <class T, LossTerm term, bool is_paired>
__global__ void __launch_bounds__(threads)
    logits_loss_elementwise_kernel(Aligned<LogitsTerm<T>> of, bool aligned, T* losses) {
  for_vectors<step<T>>(of.batch.n, [&](int64_t i) {
    compute_t<T> values[step<T>];
    losses_of<term, is_paired>(of, i, values);
    store_elements(losses, i, of.batch.n, aligned, values);
  });
}

template <class T, LossTerm term, bool is_paired>
__global__ void __launch_bounds__(threads)
    logits_loss_backward_kernel(int64_t n, const compute_t<T>* gradient, const T* grad_output, bool one_grad_output,
                                double scale, bool aligned, T* out, T* out_of_minus) {
  using C = compute_t<T>;
  const C s = C(scale), g = one_grad_output ? load(grad_output) * s : C(0);
  for_vectors<step<T>>(n, [&](int64_t i) {
    C values[step<T>], factors[step<T>];
    load_elements(gradient, i, n, aligned, values);
    if (!one_grad_output) load_elements(grad_output, i, n, aligned, factors);
#pragma unroll
    for (int k = 0; k < step<T>; ++k)
      values[k] = scaled_gradient(LossOf<term>{}, values[k], one_grad_output ? g : factors[k] * s);
    store_elements(out, i, n, aligned, values);
    if constexpr (is_paired) {
#pragma unroll
      for (int k = 0; k < step<T>; ++k) values[k] = -values[k];
      store_elements(out_of_minus, i, n, aligned, values);
    }
  });
}

// Of one grad_output there is one gradient too, the sum; else of each element its own.
// Two blocks a multiprocessor are enough to ask for: without that ptxas keeps to 64 registers on sm_80, and spills.
template <class T, LossTerm term, bool is_paired, bool one_grad_output>
__global__ void __launch_bounds__(threads, 2)
    logits_loss_double_backward_kernel(Batches<LogitsTangent<T>> batches, const T* grad_output, double* partial,
                                       unsigned* counter, T* grad_grad_output) {
  using C = compute_t<T>;
  constexpr int length = vector_length<T>;
  const C g = one_grad_output ? load(grad_output) : C(0);
  double total = 0;
  for (int which = 0; which < batches.count; ++which) {
    const LogitsTangent<T>& batch = batches.list[which].batch;
    const bool aligned = batches.list[which].aligned;
    const C target = C(batch.target), factor = C(batch.sign * batch.scale);
    double sum = 0;
    for_vectors<length>(batch.n, [&](int64_t i) {
      C x[length], c[length];
      load_logits<is_paired>(batch.logits, batch.minus, i, batch.n, aligned, x);
      load_logits<is_paired>(batch.tangent, batch.tangent_of_minus, i, batch.n, aligned, c);
      C few = 0;
#pragma unroll
      for (int k = 0; k < length; ++k) {  // of c comes the derivative by grad_output, of x the other without it
        const C slope = scaled_gradient(LossOf<term>{}, LossOf<term>::at(x[k], target).gradient, c[k]);
        x[k] = is_bent(LossOf<term>{}) ? c[k] * factor * LossOf<term>::second(x[k], target) : C(0);
        c[k] = slope * factor;
        few += i + k < batch.n ? slope : C(0);
      }
      sum += few;
      if constexpr (one_grad_output) {
#pragma unroll
        for (int k = 0; k < length; ++k) x[k] *= is_bent(LossOf<term>{}) ? g : C(0);
      } else {
        store_elements(grad_grad_output, i, batch.n, aligned, c);
        load_elements(grad_output, i, batch.n, aligned, c);
#pragma unroll
        for (int k = 0; k < length; ++k) x[k] *= is_bent(LossOf<term>{}) ? c[k] : C(0);
      }
      store_elements(batch.out, i, batch.n, aligned, x);
      if constexpr (is_paired) {
#pragma unroll
        for (int k = 0; k < length; ++k) x[k] = -x[k];
        store_elements(batch.out_of_minus, i, batch.n, aligned, x);
      }
    });
    total += batch.sign * batch.scale * sum;
  }
  if constexpr (one_grad_output) store_launch_sum<threads>(total, 1.0, partial, counter, grad_grad_output);
}

template <class T>
bool is_aligned(const LogitsTerm<T>& batch) {
  return all_aligned(batch.logits, batch.minus, batch.gradient);
}
template <class T>
bool is_aligned(const LogitsTangent<T>& batch) {
  return all_aligned(batch.logits, batch.minus, batch.tangent, batch.tangent_of_minus, batch.out, batch.out_of_minus);
}

// As the kernels take them, with the length of the longest.
template <class Batch>
std::pair<Batches<Batch>, int64_t> batches_of(const Batch* given, int count) {
  if (count > max_logits_terms)
    throw std::runtime_error("logits_loss: there may be at most " + std::to_string(max_logits_terms) +
                             " batches of logits a call on a GPU, not " + std::to_string(count));
  Batches<Batch> batches = {};
  int64_t longest = 0;
  for (int k = 0; k < count; ++k) {
    batches.list[k] = {given[k], is_aligned(given[k])};
    longest = std::max(longest, given[k].n);
  }
  batches.count = count;
  return {batches, longest};
}

// What a sum over a launch needs: a place for each block's, and a counter; none where there is one block.
struct SumMemory {
  SumMemory(const Context& context, const Grid& grid)
      : partial(grid.blocks.x == 1 ? nullptr : static_cast<double*>(context.scratch(grid.blocks.x * sizeof(double)))),
        counter(grid.blocks.x == 1 ? nullptr : context.counters()) {}

  double* partial;
  unsigned* counter;
};

template <LossTerm t>
constexpr LossTerm term_of(LossOf<t>) {
  return t;
}

}  // namespace

template <class T>
void logits_loss_sum(const Context& context, LossTerm term, const LogitsTerm<T>* given, int count, T* loss) {
  const auto [batches, longest] = batches_of(given, count);
  const Grid grid = elementwise_grid<T>(context, longest);
  const SumMemory memory(context, grid);
  with_loss(term, given[0].minus != nullptr, [&, &batches = batches](auto of, auto paired) {
    launch(context, "logits_loss_sum", logits_loss_sum_kernel<T, term_of(of), paired>, grid, batches, memory.partial,
           memory.counter, loss);
  });
}

template <class T>
void logits_loss_elementwise(const Context& context, LossTerm term, const LogitsTerm<T>& batch, T* losses) {
  if (batch.n == 0) return;
  with_loss(term, batch.minus != nullptr, [&](auto of, auto paired) {
    launch(context, "logits_loss_elementwise", logits_loss_elementwise_kernel<T, term_of(of), paired>,
           elementwise_grid<T>(context, batch.n), Aligned<LogitsTerm<T>>{batch, is_aligned(batch)}, all_aligned(losses),
           losses);
  });
}

template <class T>
void logits_loss_backward(const Context& context, LossTerm term, int64_t n, const compute_t<T>* gradient,
                          const T* grad_output, int64_t stride, double scale, T* out, T* out_of_minus) {
  if (n == 0) return;
  const bool one = stride == 0;
  // But for the hinge, all terms are scaled alike.
  const auto run = [&](auto of, auto paired) {
    launch(context, "logits_loss_backward", logits_loss_backward_kernel<T, term_of(of), paired>,
           elementwise_grid<T>(context, n), n, gradient, grad_output, one, scale,
           all_aligned(gradient, one ? nullptr : grad_output, out, out_of_minus), out, out_of_minus);
  };
  if (term == LossTerm::hinge) return run(LossOf<LossTerm::hinge>{}, std::false_type{});
  if (out_of_minus == nullptr) return run(LossOf<LossTerm::linear>{}, std::false_type{});
  run(LossOf<LossTerm::cross_entropy>{}, std::true_type{});
}

template <class T>
void logits_loss_double_backward(const Context& context, LossTerm term, const LogitsTangent<T>* given, int count,
                                 const T* grad_output, int64_t stride, T* grad_grad_output) {
  auto [batches, longest] = batches_of(given, count);
  const bool one = stride == 0;
  if (!one && longest == 0) return;
  if (!one) batches.list[0].aligned = batches.list[0].aligned && all_aligned(grad_output, grad_grad_output);
  const Grid grid = elementwise_grid<T>(context, longest);
  const SumMemory memory(context, grid);
  with_loss(term, given[0].minus != nullptr, [&, &batches = batches](auto of, auto paired) {
    const auto run = [&, of, paired, &batches = batches](auto one_grad_output) {
      launch(context, "logits_loss_double_backward",
             logits_loss_double_backward_kernel<T, term_of(of), paired, one_grad_output>, grid, batches, grad_output,
             memory.partial, memory.counter, grad_grad_output);
    };
    one ? run(std::true_type{}) : run(std::false_type{});
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

}  // namespace fastgan::cuda
