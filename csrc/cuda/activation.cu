// What is left of a layer where a library does its product, and the derivative of the last layer's activation.
#include <algorithm>

#include "elementwise.h"
#include "linear.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

template <class T>
constexpr int length = vector_length<T>;

template <class T>
__global__ void __launch_bounds__(threads)
    bias_act_kernel(ActivationArguments activation, int64_t n, int64_t cols, bool aligned, T* z, const T* bias, T* y) {
  using C = compute_t<T>;
  const C slope = C(activation.negative_slope);
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<length<T>>(n, [&](int64_t i) {
      C values[length<T>];
      load_elements(z, i, n, aligned, values);
      if (bias != nullptr) {
        int64_t col = i % cols;
#pragma unroll
        for (int k = 0; k < length<T>; ++k) {
          values[k] += load(bias + col);
          col = col + 1 == cols ? 0 : col + 1;
        }
        if (y != z) store_elements(z, i, n, aligned, values);
      }
#pragma unroll
      for (int k = 0; k < length<T>; ++k) values[k] = A::value(values[k], slope);
      store_elements(y, i, n, aligned, values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads) act_backward_kernel(ActivationArguments activation, int64_t n, bool aligned,
                                                               const T* grad_y, const T* saved, T* grad_z) {
  using C = compute_t<T>;
  const C slope = C(activation.negative_slope);
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<length<T>>(n, [&](int64_t i) {
      C values[length<T>], s[length<T>];
      load_elements(grad_y, i, n, aligned, values);
      load_elements(saved, i, n, aligned, s);
#pragma unroll
      for (int k = 0; k < length<T>; ++k) values[k] = gradient<A>(values[k], s[k], slope);
      store_elements(grad_z, i, n, aligned, values);
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    act_double_backward_kernel(ActivationArguments activation, int64_t n, bool aligned, const T* u, const T* grad_y,
                               const T* saved, T* grad_grad_y, T* grad_z2) {
  using C = compute_t<T>;
  const C slope = C(activation.negative_slope);
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<length<T>>(n, [&](int64_t i) {
      C values[length<T>], s[length<T>], g[length<T>];
      load_elements(u, i, n, aligned, values);
      load_elements(saved, i, n, aligned, s);
      if (grad_z2 != nullptr) {
        load_elements(grad_y, i, n, aligned, g);
#pragma unroll
        for (int k = 0; k < length<T>; ++k) g[k] *= values[k] * A::dd(s[k], slope);
        store_elements(grad_z2, i, n, aligned, g);
      }
#pragma unroll
      for (int k = 0; k < length<T>; ++k) values[k] = gradient<A>(values[k], s[k], slope);
      store_elements(grad_grad_y, i, n, aligned, values);
    });
  });
}

constexpr int sum_cols = 32, sum_rows = threads / sum_cols;

// The column sums of a matrix: a warp reads 32 columns of a row; rows are shared out among the warps of a block and the
// blocks of grid.y, whose sums the last of them adds in order.
template <class T>
__global__ void __launch_bounds__(threads) column_sums_kernel(int64_t rows, int64_t cols, const T* matrix,
                                                              compute_t<T>* partial, unsigned* counters, T* sums) {
  using C = compute_t<T>;
  FASTGAN_SHARED(C[sum_rows * sum_cols], of_warp);
  const int64_t col = int64_t{blockIdx.x} * sum_cols + threadIdx.x % sum_cols;
  C sum = 0;
  if (col < cols)
    for (int64_t row = int64_t{blockIdx.y} * sum_rows + threadIdx.x / sum_cols; row < rows;
         row += int64_t{gridDim.y} * sum_rows)
      sum += load(matrix + row * cols + col);
  of_warp[threadIdx.x] = sum;
  __syncthreads();
  const bool first_warp = threadIdx.x < sum_cols;
  if (first_warp) {
    for (int warp = 1; warp < sum_rows; ++warp) sum += of_warp[warp * sum_cols + threadIdx.x];
    if (col < cols && gridDim.y > 1) partial[blockIdx.y * cols + col] = sum;
  }
  if (gridDim.y > 1) {
    if (!is_last_block(counters + blockIdx.x, gridDim.y)) return;
    sum = 0;
    if (first_warp && col < cols)
      for (unsigned block = 0; block < gridDim.y; ++block) sum += partial[block * cols + col];
  }
  if (first_warp && col < cols) store(sums + col, sum);
}

template <class T>
void column_sums(const Context& context, int64_t rows, int64_t cols, const T* matrix, T* sums) {
  if (cols == 0) return;
  const int64_t across = (cols + sum_cols - 1) / sum_cols;
  const int64_t fill = std::min(2 * context.multiprocessors / across, rows / (4 * sum_rows));
  const int64_t down = across > Context::counter_count ? 1 : std::clamp<int64_t>(fill, 1, 64);
  launch(context, "column_sums", column_sums_kernel<T>,
         Grid{dim3(static_cast<unsigned>(across), static_cast<unsigned>(down)), dim3(threads)}, rows, cols, matrix,
         down == 1 ? nullptr : static_cast<compute_t<T>*>(context.scratch(down * cols * sizeof(compute_t<T>))),
         down == 1 ? nullptr : context.counters(), sums);
}

}  // namespace

template <class T>
void bias_act(const Context& context, ActivationArguments arguments, int64_t rows, int64_t cols, T* z, const T* bias,
              T* y) {
  const int64_t n = rows * cols;
  const bool nothing = arguments.activation == Activation::identity && bias == nullptr && y == z;
  if (n == 0 || nothing) return;
  launch(context, "bias_act", bias_act_kernel<T>, elementwise_grid<T>(context, n), arguments, n, cols,
         all_aligned(z, y), z, bias, y);
}

template <class T>
void act_backward(const Context& context, ActivationArguments arguments, int64_t rows, int64_t cols, const T* grad_y,
                  const T* saved, T* grad_z, T* grad_bias) {
  const int64_t n = rows * cols;
  const bool passed_on = arguments.activation == Activation::identity && (grad_z == nullptr || grad_z == grad_y);
  if (n > 0 && !passed_on)
    launch(context, "act_backward", act_backward_kernel<T>, elementwise_grid<T>(context, n), arguments, n,
           all_aligned(grad_y, saved, grad_z), grad_y, saved, grad_z);
  if (grad_bias != nullptr) column_sums(context, rows, cols, passed_on ? grad_y : grad_z, grad_bias);
}

template <class T>
void act_double_backward(const Context& context, ActivationArguments arguments, int64_t n, const T* u, const T* grad_y,
                         const T* saved, T* grad_grad_y, T* grad_z2) {
  if (n == 0) return;
  launch(context, "act_double_backward", act_double_backward_kernel<T>, elementwise_grid<T>(context, n), arguments, n,
         all_aligned(u, grad_y, saved, grad_grad_y, grad_z2), u, grad_y, saved, grad_grad_y, grad_z2);
}

#define FASTGAN_INSTANTIATE(T)                                                                                         \
  template void bias_act<T>(const Context&, ActivationArguments, int64_t, int64_t, T*, const T*, T*);                  \
  template void act_backward<T>(const Context&, ActivationArguments, int64_t, int64_t, const T*, const T*, T*, T*);    \
  template void act_double_backward<T>(const Context&, ActivationArguments, int64_t, const T*, const T*, const T*, T*, \
                                       T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
