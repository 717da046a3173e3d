#include "../core/logits_loss.h"
#include "adam_parameter.h"
#include "elementwise.h"
#include "reduce.h"
#include "step_parts.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

template <class T>
struct PackedList {
  PackedRows<T> list[most_packed];
};

template <class T>
__global__ void __launch_bounds__(threads) pack_rows_kernel(const __grid_constant__ PackedList<T> packed, int64_t batch,
                                                            const int64_t* labels, int64_t classes, OddLabels odd) {
  const PackedRows<T>& p = packed.list[blockIdx.y];
  const StridedRows<T>& rows = p.rows;
  const int64_t width = rows.width + classes;
  for_vectors<1>(batch * width, [&](int64_t i) {
    const int64_t row = i / width, col = i % width;
    if (col < rows.width) {
      p.to[i] = rows.data[row * rows.row_stride + col * rows.col_stride];
      return;
    }
    const int64_t label = labels[row];
    // Ending the program, as torch's own check on a device does, would take all else that is on the device with it.
    if ((label < 0 || label >= classes) && atomicExch(odd.found, 1u) == 0 && odd.told != nullptr) *odd.told = label;
    p.to[i] = label == col - rows.width ? T(1) : T(0);
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    step_loss_kernel(const __grid_constant__ StepLoss<T> a, double* partial, unsigned* counter) {
  const int half = blockIdx.y;
  const T target = T(a.target[half]), scale = T(a.sign / double(a.batch));
  double loss = 0, score = 0;
  with_activation(a.activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(a.batch, [&](int64_t i) {
      const int64_t place = half * a.batch + i;
      const T logit = a.logits[place];
      const LossAndGradient<T> both = logits_loss(logit, target);
      loss += double(both.loss);
      score += double(sigmoid_(logit));
      a.grad_z[place] = gradient<A>(scale * both.gradient, a.saved[place], T(a.activation.negative_slope));
    });
  });
  loss = block_sum<threads>(loss);
  score = block_sum<threads>(score);
  double* const own = partial + 2 * (blockIdx.y * gridDim.x + blockIdx.x);
  if (threadIdx.x == 0) own[0] = loss, own[1] = score;
  if (!is_last_block(counter, gridDim.x * gridDim.y) || threadIdx.x > 0) return;
  T total = 0;
  const bool is_odd = a.odd_label != nullptr && *a.odd_label != 0;
  if (is_odd && a.is_last_of_step) *a.odd_label = 0;
  for (int h = 0; h < a.halves; ++h) {
    loss = score = 0;
    for (unsigned block = 0; block < gridDim.x; ++block) {
      const double* sums = partial + 2 * (h * gridDim.x + block);
      loss += sums[0], score += sums[1];
    }
    total += T(a.sign * loss / double(a.batch));
    if (a.score[h] != nullptr) *a.score[h] = is_odd ? T(NAN) : T(score / double(a.batch));
  }
  *a.loss = is_odd ? T(NAN) : total;
}

// The factor of element i of a matrix as wide as the layer.
template <class T>
__device__ __forceinline__ T kept(const Dropout<T>& dropout, int64_t i) {
  if (dropout.mask[0] == nullptr) return T(1);
  const int64_t size = dropout.batch * dropout.width, half = i / size;
  return dropout.mask[half][i - half * size] * T(dropout.scale);
}

template <class T>
__global__ void __launch_bounds__(threads)
    dropout_forward_kernel(const __grid_constant__ Dropout<T> dropout, ActivationArguments activation, const T* x, T* z,
                           T* y) {
  const int64_t n = dropout.halves * dropout.batch * dropout.width;
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(n, [&](int64_t i) {
      const T value = x[i] * kept(dropout, i);
      if (z != nullptr) z[i] = value;
      y[i] = A::value(value, T(activation.negative_slope));
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    dropout_backward_kernel(const __grid_constant__ Dropout<T> dropout, ActivationArguments activation,
                            int64_t target_width, const T* grad_z, const T* saved, T* grad) {
  const int64_t n = dropout.halves * dropout.batch * target_width;
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(n, [&](int64_t i) {
      const int64_t from = i / target_width * dropout.width + i % target_width;
      grad[i] = gradient<A>(grad_z[from] * kept(dropout, from), saved[i], T(activation.negative_slope));
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads) update_parameter_kernel(const __grid_constant__ AdamParameter<T> parameter,
                                                                   int64_t n, const T* gradient, T average_rate) {
  const AdamStep<T> step = *parameter.step;
  for_vectors<1>(n, [&](int64_t i) { update(parameter, step, i, gradient[i], average_rate); });
}

// A thread an element, as far as that fills the device.
Grid grid_of(const Context& context, int64_t n, unsigned down = 1) {
  const int64_t most = int64_t{8} * context.multiprocessors;
  return {dim3(static_cast<unsigned>(std::clamp<int64_t>((n + threads - 1) / threads, 1, most)), down), dim3(threads)};
}

}  // namespace

template <class T>
void pack_rows(const Context& context, const PackedRows<T>* packed, int count, int64_t batch, const int64_t* labels,
               int64_t classes, OddLabels odd) {
  PackedList<T> list = {};
  int64_t widest = 0;
  for (int i = 0; i < count; ++i) {
    list.list[i] = packed[i];
    widest = std::max(widest, packed[i].rows.width + classes);
  }
  launch(context, "pack_rows", pack_rows_kernel<T>, grid_of(context, batch * widest, static_cast<unsigned>(count)),
         list, batch, labels, classes, odd);
}

template <class T>
void step_loss(const Context& context, const StepLoss<T>& a) {
  // The last block adds the sums of all, one by one: few.
  const unsigned across = static_cast<unsigned>(std::clamp<int64_t>(a.batch / (4 * threads), 1, 64));
  const Grid grid{dim3(across, static_cast<unsigned>(a.halves)), dim3(threads)};
  launch(context, "step_loss", step_loss_kernel<T>, grid, a,
         static_cast<double*>(context.scratch(2 * across * a.halves * sizeof(double))), context.counters());
}

template <class T>
void dropout_forward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation, const T* x,
                     T* z, T* y) {
  launch(context, "dropout_forward", dropout_forward_kernel<T>,
         grid_of(context, dropout.halves * dropout.batch * dropout.width), dropout, activation, x, z, y);
}

template <class T>
void dropout_backward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation,
                      int64_t target_width, const T* grad_z, const T* saved, T* grad) {
  launch(context, "dropout_backward", dropout_backward_kernel<T>,
         grid_of(context, dropout.halves * dropout.batch * target_width), dropout, activation, target_width, grad_z,
         saved, grad);
}

template <class T>
void update_parameter(const Context& context, const AdamParameter<T>& parameter, int64_t n, const T* gradient,
                      T average_rate) {
  launch(context, "update_parameter", update_parameter_kernel<T>, grid_of(context, n), parameter, n, gradient,
         average_rate);
}

#define FASTGAN_INSTANTIATE(T)                                                                                        \
  template void pack_rows<T>(const Context&, const PackedRows<T>*, int, int64_t, const int64_t*, int64_t, OddLabels); \
  template void step_loss<T>(const Context&, const StepLoss<T>&);                                                     \
  template void dropout_forward<T>(const Context&, const Dropout<T>&, ActivationArguments, const T*, T*, T*);         \
  template void dropout_backward<T>(const Context&, const Dropout<T>&, ActivationArguments, int64_t, const T*,        \
                                    const T*, T*);                                                                    \
  template void update_parameter<T>(const Context&, const AdamParameter<T>&, int64_t, const T*, T);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
