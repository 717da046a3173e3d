// A block has 32 features of all rows: it sums them, and goes over them again, from the second-level cache.
#include "adam_parameter.h"
#include "batch_norm.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int cols = 32, lines = 8, threads = cols * lines;

// The sum over the block's threads of a column, in order, for all of them.
__device__ __forceinline__ double column_sum(double value) {
  FASTGAN_SHARED(double[threads], of_thread);
  of_thread[threadIdx.x] = value;
  __syncthreads();
  double total = 0;
  for (int line = 0; line < lines; ++line) total += of_thread[line * cols + threadIdx.x % cols];
  __syncthreads();  // the place may be used again
  return total;
}

// Calls body(place) for this thread's rows of a part, at its column.
template <class Body>
__device__ __forceinline__ void for_rows(const Parts& parts, int part, int64_t width, int64_t col, const Body& body) {
  if (col >= width) return;
  for (int64_t row = parts.begin[part] + threadIdx.x / cols; row < parts.begin[part + 1]; row += lines)
    body(row * width + col);
}

template <class T>
__global__ void __launch_bounds__(threads)
    batch_norm_forward_kernel(const __grid_constant__ BatchNormForward<T> a, unsigned* counter) {
  const StepLayer<T>& layer = a.layer;
  const int64_t width = layer.out, col = int64_t{blockIdx.x} * cols + threadIdx.x % cols;
  const bool writes = threadIdx.x < cols && col < width;
  for (int part = 0; part < a.parts.count; ++part) {
    const double rows = double(a.parts.rows_of(part));
    double mean = 0, variance = 0;
    if (layer.batch_statistics) {
      double sum = 0, squares = 0;
      for_rows(a.parts, part, width, col, [&](int64_t place) { sum += a.x[place]; });
      mean = column_sum(sum) / rows;
      for_rows(a.parts, part, width, col, [&](int64_t place) {
        const double difference = a.x[place] - mean;
        squares += difference * difference;
      });
      squares = column_sum(squares);
      variance = squares / rows;
      if (writes && layer.running_mean != nullptr) {
        const double momentum =
            layer.batches != nullptr && layer.cumulative ? 1.0 / double(*layer.batches + 1 + part) : layer.momentum;
        layer.running_mean[col] = moving(layer.running_mean[col], mean, momentum);
        layer.running_var[col] = moving(layer.running_var[col], squares / (rows - 1), momentum);
      }
    } else if (col < width) {
      mean = layer.running_mean[col];
      variance = layer.running_var[col];
    }
    const T mean_ = T(mean), inverse = T(1 / sqrt_(variance + layer.eps));
    if (writes) {
      a.moments[2 * part * width + col] = mean_;
      a.moments[(2 * part + 1) * width + col] = inverse;
    }
    with_activation(layer.activation.activation, [&](auto act) {
      using A = decltype(act);
      const T slope = T(layer.activation.negative_slope);
      const T weight = layer.weight.value == nullptr || col >= width ? T(1) : layer.weight.value[col];
      const T bias = layer.bias.value == nullptr || col >= width ? T(0) : layer.bias.value[col];
      const T scale = inverse * weight, shift = bias - mean_ * scale;
      for_rows(a.parts, part, width, col, [&](int64_t place) {
        const T z = a.x[place] * scale + shift;
        if (a.z != nullptr) a.z[place] = z;
        a.y[place] = A::value(z, slope);
      });
    });
  }
  if (!layer.batch_statistics || layer.batches == nullptr) return;
  if (is_last_block(counter, gridDim.x) && threadIdx.x == 0) *layer.batches += a.parts.count;  // all have read it
}

template <class T>
__global__ void __launch_bounds__(threads, 2)
    batch_norm_backward_kernel(const __grid_constant__ BatchNormBackward<T> a) {
  const StepLayer<T>& layer = a.layer;
  const int64_t width = layer.out, col = int64_t{blockIdx.x} * cols + threadIdx.x % cols;
  const bool is_column = col < width;
  const T weight = layer.weight.value == nullptr || !is_column ? T(1) : layer.weight.value[col];
  double by_weight = 0, by_bias = 0;
  for (int part = 0; part < a.parts.count; ++part) {
    const double rows = double(a.parts.rows_of(part));
    const T mean = is_column ? a.moments[2 * part * width + col] : T(0);
    const T inverse = is_column ? a.moments[(2 * part + 1) * width + col] : T(0);
    double sum = 0, product = 0;
    for_rows(a.parts, part, width, col, [&](int64_t place) {
      const T g = a.grad_z[place];
      sum += g;
      product += g * ((a.x[place] - mean) * inverse);
    });
    sum = column_sum(sum);
    product = column_sum(product);
    by_bias += sum;
    by_weight += product;
    if (a.grad == nullptr || col >= a.target_width) continue;  // the block's sums are done
    const T mean_gradient = T(sum / rows), along = T(product / rows);
    // Without an activation before, the derivative is that of the identity.
    with_activation(a.saved == nullptr ? Activation::identity : a.activation.activation, [&](auto act) {
      using A = decltype(act);
      const T slope = T(a.activation.negative_slope), scale = inverse * weight, tilt = inverse * along;
      for (int64_t row = a.parts.begin[part] + threadIdx.x / cols; row < a.parts.begin[part + 1]; row += lines) {
        const int64_t from = row * width + col, to = row * a.target_width + col;
        T g = a.grad_z[from];
        if (layer.batch_statistics) g = g - mean_gradient - (a.x[from] - mean) * tilt;
        g *= scale;
        a.grad[to] = a.saved == nullptr ? g : gradient<A>(g, a.saved[to], slope);
      }
    });
  }
  if (!a.updates || threadIdx.x >= cols || !is_column) return;
  // All threads have read their weight: column_sum has a barrier.
  const auto finish = [&](const AdamParameter<T>& parameter, T* gradient, double sum) {
    if (gradient != nullptr)
      gradient[col] = T(sum);
    else if (parameter.is_updated())
      update(parameter, *parameter.step, col, T(sum), a.average_rate);
  };
  finish(layer.weight, a.grad_weight, by_weight);
  finish(layer.bias, a.grad_bias, by_bias);
}

Grid grid_of(int64_t width) { return {dim3(static_cast<unsigned>((width + cols - 1) / cols)), dim3(threads)}; }

}  // namespace

template <class T>
void batch_norm_forward(const Context& context, const BatchNormForward<T>& a) {
  launch(context, "batch_norm_forward", batch_norm_forward_kernel<T>, grid_of(a.layer.out), a, context.counters());
}

template <class T>
void batch_norm_backward(const Context& context, const BatchNormBackward<T>& a) {
  launch(context, "batch_norm_backward", batch_norm_backward_kernel<T>, grid_of(a.layer.out), a);
}

#define FASTGAN_INSTANTIATE(T)                                                     \
  template void batch_norm_forward<T>(const Context&, const BatchNormForward<T>&); \
  template void batch_norm_backward<T>(const Context&, const BatchNormBackward<T>&);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
