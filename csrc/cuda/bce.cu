#include "bce.h"
#include "elementwise.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

template <class T>
constexpr int length = vector_length<T>;

// The operand's elements that meet elements i ... of the input.
template <class T>
__device__ __forceinline__ void load_operand(const Operand<T>& operand, int64_t i, int64_t n, bool aligned,
                                             compute_t<T> (&out)[length<T>]) {
  using C = compute_t<T>;
  if (operand.period == n && operand.data != nullptr) return load_elements(operand.data, i, n, aligned, out);
  if (operand.data == nullptr || operand.period == 1) {
    const C value = operand.data == nullptr ? C(1) : load(operand.data);
#pragma unroll
    for (int k = 0; k < length<T>; ++k) out[k] = value;
    return;
  }
  int64_t place = i % operand.period;
#pragma unroll
  for (int k = 0; k < length<T>; ++k) {
    out[k] = load(operand.data + place);
    place = place + 1 == operand.period ? 0 : place + 1;
  }
}

// One vector of everything that the loss is a function of.
template <class T>
struct Inputs {
  __device__ __forceinline__ Inputs(const BceArguments<T>& a, int64_t i, bool aligned) {
    load_elements(a.input, i, a.n, aligned, x);
    load_elements(a.target, i, a.n, aligned, t);
    load_operand(a.weight, i, a.n, aligned, w);
    load_operand(a.pos_weight, i, a.n, aligned, p);
  }
  compute_t<T> x[length<T>], t[length<T>], w[length<T>], p[length<T>];
};

template <class T>
__global__ void __launch_bounds__(threads) bce_elementwise_kernel(BceArguments<T> a, bool aligned, T* losses) {
  for_vectors<length<T>>(a.n, [&](int64_t i) {
    const Inputs<T> in(a, i, aligned);
    compute_t<T> values[length<T>];
#pragma unroll
    for (int k = 0; k < length<T>; ++k) values[k] = bce_loss(in.x[k], in.t[k], in.w[k], in.p[k]);
    store_elements(losses, i, a.n, aligned, values);
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    bce_sum_kernel(BceArguments<T> a, bool aligned, double scale, double* partial, unsigned* counter, T* loss) {
  using C = compute_t<T>;
  double sum = 0;
  for_vectors<length<T>>(a.n, [&](int64_t i) {
    const Inputs<T> in(a, i, aligned);
    C few = 0;
#pragma unroll
    for (int k = 0; k < length<T>; ++k) few += i + k < a.n ? bce_loss(in.x[k], in.t[k], in.w[k], in.p[k]) : C(0);
    sum += few;
  });
  store_launch_sum<threads>(sum, scale, partial, counter, loss);
}

template <class T>
__global__ void __launch_bounds__(threads)
    bce_backward_kernel(BceArguments<T> a, bool aligned, const T* grad_output, bool one_grad_output, double scale,
                        T* grad_input, T* grad_target) {
  using C = compute_t<T>;
  const C s = C(scale), g = one_grad_output ? load(grad_output) * s : C(0);
  for_vectors<length<T>>(a.n, [&](int64_t i) {
    Inputs<T> in(a, i, aligned);
    C factors[length<T>], values[length<T>];
    if (!one_grad_output) load_elements(grad_output, i, a.n, aligned, factors);
#pragma unroll
    for (int k = 0; k < length<T>; ++k) in.w[k] *= one_grad_output ? g : factors[k] * s;
    if (grad_input != nullptr) {
#pragma unroll
      for (int k = 0; k < length<T>; ++k) values[k] = bce_input_gradient(in.x[k], in.t[k], in.w[k], in.p[k]);
      store_elements(grad_input, i, a.n, aligned, values);
    }
    if (grad_target != nullptr) {
#pragma unroll
      for (int k = 0; k < length<T>; ++k) values[k] = bce_target_gradient(in.x[k], in.w[k], in.p[k]);
      store_elements(grad_target, i, a.n, aligned, values);
    }
  });
}

// Whether all that is read in vectors is aligned.
template <class T, class... Others>
bool aligned_arguments(const BceArguments<T>& a, Others... others) {
  return all_aligned(a.input, a.target, a.weight.period == a.n ? a.weight.data : nullptr,
                     a.pos_weight.period == a.n ? a.pos_weight.data : nullptr, others...);
}

}  // namespace

template <class T>
void bce_elementwise(const Context& context, const BceArguments<T>& a, T* losses) {
  if (a.n == 0) return;
  launch(context, "bce_elementwise", bce_elementwise_kernel<T>, elementwise_grid<T>(context, a.n), a,
         aligned_arguments(a, losses), losses);
}

template <class T>
void bce_sum(const Context& context, const BceArguments<T>& a, double scale, T* loss) {
  const Grid grid = elementwise_grid<T>(context, a.n);
  const bool one = grid.blocks.x == 1;
  launch(context, "bce_sum", bce_sum_kernel<T>, grid, a, aligned_arguments(a), scale,
         one ? nullptr : static_cast<double*>(context.scratch(grid.blocks.x * sizeof(double))),
         one ? nullptr : context.counters(), loss);
}

template <class T>
void bce_backward(const Context& context, const BceArguments<T>& a, const T* grad_output, int64_t stride, double scale,
                  T* grad_input, T* grad_target) {
  if (a.n == 0) return;
  const bool one = stride == 0;
  launch(context, "bce_backward", bce_backward_kernel<T>, elementwise_grid<T>(context, a.n), a,
         aligned_arguments(a, one ? nullptr : grad_output, grad_input, grad_target), grad_output, one, scale,
         grad_input, grad_target);
}

#define FASTGAN_INSTANTIATE(T)                                                  \
  template void bce_elementwise<T>(const Context&, const BceArguments<T>&, T*); \
  template void bce_sum<T>(const Context&, const BceArguments<T>&, double, T*); \
  template void bce_backward<T>(const Context&, const BceArguments<T>&, const T*, int64_t, double, T*, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
