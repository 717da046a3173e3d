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
__global__ void __launch_bounds__(threads)
    pack_rows_kernel(const __grid_constant__ PackedList<T> packed, int64_t classes, OddLabels odd) {
  const PackedRows<T>& p = packed.list[blockIdx.y];
  const StridedRows<T>& rows = p.rows;
  const int64_t width = rows.width + classes;
  const T scale = p.noise != nullptr ? T(*p.scale) : T(0);
  for_vectors<1>(p.batch * width, [&](int64_t i) {
    const int64_t row = i / width, col = i % width;
    if (col < rows.width) {
      const T value = rows.data[row * rows.row_stride + col * rows.col_stride];
      p.to[i] = p.noise == nullptr ? value : value + scale * p.noise[row * rows.width + col];
      return;
    }
    const int64_t label = p.labels[row];
    // Ending the program, as torch's own check on a device does, would take all else that is on the device with it.
    if ((label < 0 || label >= classes) && atomicExch(odd.found, 1u) == 0 && odd.told != nullptr) *odd.told = label;
    p.to[i] = label == col - rows.width ? T(1) : T(0);
  });
}

template <class T>
__global__ void __launch_bounds__(threads) mix_rows_kernel(int64_t n, int64_t width, int64_t sample, int64_t data,
                                                           const T* u, const T* real, const T* fake, T* to) {
  for_vectors<1>(n, [&](int64_t i) {
    const T share = u[i / width];
    to[i] = i % sample < data ? share * real[i] + (T(1) - share) * fake[i] : real[i];
  });
}

template <class T>
__global__ void __launch_bounds__(threads)
    unpack_gradient_kernel(int64_t n, int64_t sample, int64_t data, ActivationArguments activation, const T* packed,
                           const T* saved, T* grad) {
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(n, [&](int64_t i) {
      grad[i] = gradient<A>(packed[i / data * sample + i % data], saved[i], T(activation.negative_slope));
    });
  });
}

// The factor of element i of a matrix as wide as the layer.
template <class T>
__device__ __forceinline__ T kept(const Dropout<T>& dropout, int64_t i) {
  if (dropout.mask[0] == nullptr) return T(1);
  int part = 0;
  while (part + 1 < dropout.parts.count && i >= dropout.parts.begin[part + 1] * dropout.width) ++part;
  return dropout.mask[part][i - dropout.parts.begin[part] * dropout.width] * T(dropout.scale);
}

template <class T>
__global__ void __launch_bounds__(threads)
    dropout_forward_kernel(const __grid_constant__ Dropout<T> dropout, ActivationArguments activation, const T* x, T* z,
                           T* y) {
  with_activation(activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(dropout.parts.rows() * dropout.width, [&](int64_t i) {
      const T value = x[i] * kept(dropout, i);
      if (z != nullptr) z[i] = value;
      y[i] = A::value(value, T(activation.negative_slope));
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads, 4)
    dropout_backward_kernel(const __grid_constant__ Dropout<T> dropout, ActivationArguments activation,
                            int64_t target_width, const T* grad_z, const T* saved, T* grad) {
  with_activation(saved == nullptr ? Activation::identity : activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(dropout.parts.rows() * target_width, [&](int64_t i) {
      const int64_t from = i / target_width * dropout.width + i % target_width;
      const T g = grad_z[from] * kept(dropout, from);
      grad[i] = saved == nullptr ? g : gradient<A>(g, saved[i], T(activation.negative_slope));
    });
  });
}

template <class T>
__global__ void __launch_bounds__(threads) add_rows_kernel(int64_t n, const T* from, T* to) {
  for_vectors<1>(n, [&](int64_t i) { to[i] += from[i]; });
}

template <class T>
__global__ void __launch_bounds__(threads, 3)
    update_parameter_kernel(const __grid_constant__ Update<T> a, T average_rate) {
  const AdamStep<T> step = *a.parameter.step;
  for_vectors<1>(a.n, [&](int64_t i) { update(a.parameter, step, i, a.gradient[i], average_rate); });
}

// As many as the parameters of a kernel have room for.
constexpr int most_updates = 48;

template <class T>
struct UpdateList {
  int count;
  Update<T> list[most_updates];
};

// The sum of the squares of all gradients: those of this launch, and what `before` launches have left. The last makes
// of it what the gradients are to be scaled by.
template <class T>
__global__ void __launch_bounds__(threads)
    clip_kernel(const __grid_constant__ UpdateList<T> updates, int before, bool is_last, double most, double* partial,
                double* sums, T* coefficient, unsigned* counter) {
  double sum = 0;
  for (int k = 0; k < updates.count; ++k) {
    const Update<T>& one = updates.list[k];
    for_vectors<1>(one.n, [&](int64_t i) { sum += double(one.gradient[i]) * double(one.gradient[i]); });
  }
  sum = block_sum<threads>(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
  if (!is_last_block(counter, gridDim.x)) return;
  sum = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += threads) sum += partial[block];
  sum = block_sum<threads>(sum);
  if (threadIdx.x > 0) return;
  if (before > 0) sum += sums[before - 1];
  sums[before] = sum;
  if (!is_last) return;
  const T ratio = T(most) / (T(sqrt_(sum)) + T(1e-6));
  *coefficient = select(ratio > T(1), T(1), ratio);  // NaN stays NaN
}

template <class T>
__global__ void __launch_bounds__(threads)
    update_clipped_kernel(const __grid_constant__ UpdateList<T> updates, const T* coefficient, T average_rate) {
  const Update<T>& one = updates.list[blockIdx.y];
  const AdamStep<T> step = *one.parameter.step;
  const T scale = *coefficient;
  for_vectors<1>(one.n, [&](int64_t i) { update(one.parameter, step, i, scale * one.gradient[i], average_rate); });
}

// A thread an element, as far as that fills the device.
Grid grid_of(const Context& context, int64_t n, unsigned down = 1) {
  const int64_t most = int64_t{8} * context.multiprocessors;
  return {dim3(static_cast<unsigned>(std::clamp<int64_t>((n + threads - 1) / threads, 1, most)), down), dim3(threads)};
}

}  // namespace

template <class T>
void pack_rows(const Context& context, const PackedRows<T>* packed, int count, int64_t classes, OddLabels odd) {
  PackedList<T> list = {};
  int64_t most = 0;
  for (int i = 0; i < count; ++i) {
    list.list[i] = packed[i];
    most = std::max(most, packed[i].batch * (packed[i].rows.width + classes));
  }
  launch(context, "pack_rows", pack_rows_kernel<T>, grid_of(context, most, static_cast<unsigned>(count)), list, classes,
         odd);
}

template <class T>
void mix_rows(const Context& context, int64_t rows, int64_t width, int64_t sample, int64_t data, const T* u,
              const T* real, const T* fake, T* to) {
  const int64_t n = rows * width;
  launch(context, "mix_rows", mix_rows_kernel<T>, grid_of(context, n), n, width, sample, data, u, real, fake, to);
}

template <class T>
void unpack_gradient(const Context& context, int64_t samples, int64_t sample, int64_t data,
                     ActivationArguments activation, const T* packed, const T* saved, T* grad) {
  const int64_t n = samples * data;
  launch(context, "unpack_gradient", unpack_gradient_kernel<T>, grid_of(context, n), n, sample, data, activation,
         packed, saved, grad);
}

template <class T>
void dropout_forward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation, const T* x,
                     T* z, T* y) {
  launch(context, "dropout_forward", dropout_forward_kernel<T>, grid_of(context, dropout.parts.rows() * dropout.width),
         dropout, activation, x, z, y);
}

template <class T>
void dropout_backward(const Context& context, const Dropout<T>& dropout, ActivationArguments activation,
                      int64_t target_width, const T* grad_z, const T* saved, T* grad) {
  launch(context, "dropout_backward", dropout_backward_kernel<T>, grid_of(context, dropout.parts.rows() * target_width),
         dropout, activation, target_width, grad_z, saved, grad);
}

template <class T>
void add_rows(const Context& context, int64_t n, const T* from, T* to) {
  launch(context, "add_rows", add_rows_kernel<T>, grid_of(context, n), n, from, to);
}

template <class T>
void update_parameter(const Context& context, const Update<T>& a, T average_rate) {
  launch(context, "update_parameter", update_parameter_kernel<T>, grid_of(context, a.n), a, average_rate);
}

template <class T>
void update_clipped(const Context& context, const Update<T>* updates, int count, double most, T average_rate) {
  const int lists = (count + most_updates - 1) / most_updates;
  const int64_t room = int64_t{4} * context.multiprocessors;
  double* const partial = static_cast<double*>(context.scratch((room + lists + 1) * sizeof(double)));
  double* const sums = partial + room;
  T* const coefficient = reinterpret_cast<T*>(sums + lists);
  const auto list_of = [&](int k, int64_t& total, int64_t& largest) {
    UpdateList<T> list = {};
    list.count = std::min(most_updates, count - k * most_updates);
    std::copy_n(updates + k * most_updates, list.count, list.list);
    total = largest = 0;
    for (int i = 0; i < list.count; ++i) total += list.list[i].n, largest = std::max(largest, list.list[i].n);
    return list;
  };
  int64_t total = 0, largest = 0;
  for (int k = 0; k < lists; ++k) {
    const UpdateList<T> list = list_of(k, total, largest);
    Grid grid = grid_of(context, total);
    grid.blocks.x = std::min(grid.blocks.x, static_cast<unsigned>(room));
    launch(context, "clip", clip_kernel<T>, grid, list, k, k + 1 == lists, most, partial, sums, coefficient,
           context.counters());
  }
  for (int k = 0; k < lists; ++k) {
    const UpdateList<T> list = list_of(k, total, largest);
    launch(context, "update_clipped", update_clipped_kernel<T>,
           grid_of(context, largest, static_cast<unsigned>(list.count)), list, coefficient, average_rate);
  }
}

#define FASTGAN_INSTANTIATE(T)                                                                                         \
  template void pack_rows<T>(const Context&, const PackedRows<T>*, int, int64_t, OddLabels);                           \
  template void mix_rows<T>(const Context&, int64_t, int64_t, int64_t, int64_t, const T*, const T*, const T*, T*);     \
  template void unpack_gradient<T>(const Context&, int64_t, int64_t, int64_t, ActivationArguments, const T*, const T*, \
                                   T*);                                                                                \
  template void dropout_forward<T>(const Context&, const Dropout<T>&, ActivationArguments, const T*, T*, T*);          \
  template void dropout_backward<T>(const Context&, const Dropout<T>&, ActivationArguments, int64_t, const T*,         \
                                    const T*, T*);                                                                     \
  template void add_rows<T>(const Context&, int64_t, const T*, T*);                                                    \
  template void update_parameter<T>(const Context&, const Update<T>&, T);                                              \
  template void update_clipped<T>(const Context&, const Update<T>*, int, double, T);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
