// Adam over a list of tensors in one launch: each block takes a chunk of one of them. Steps and learning rate may stay
// on the device, so a captured graph sees them change; the last block to finish counts the steps.
#include <algorithm>

#include "adam.h"
#include "elementwise.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;
constexpr int most_tensors = 60;  // as many as fit the 4 KB of a kernel's parameters
constexpr int64_t chunk = 8192;   // elements a block

template <class T>
struct Tensors {
  AdamTensor<T> list[most_tensors];
  unsigned first_chunk[most_tensors + 1];
  int count;
};
static_assert(sizeof(Tensors<float>) + sizeof(AdamOptions) + 32 <= 4096, "the parameters of a kernel");

template <class T>
__device__ __forceinline__ bool is_aligned(const AdamTensor<T>& t) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(t.param) | reinterpret_cast<uintptr_t>(t.grad) |
                        reinterpret_cast<uintptr_t>(t.exp_avg) | reinterpret_cast<uintptr_t>(t.exp_avg_sq) |
                        reinterpret_cast<uintptr_t>(t.max_exp_avg_sq);
  return all % 16 == 0;
}

template <class T>
__global__ void __launch_bounds__(threads)
    adam_kernel(const __grid_constant__ Tensors<T> tensors, AdamOptions options, double learning_rate,
                const float* learning_rate_tensor, unsigned* counter) {
  using C = compute_t<T>;
  constexpr int length = vector_length<T>;
  FASTGAN_SHARED(AdamStep<C>, shared_step);
  int index = 0;
  while (blockIdx.x >= tensors.first_chunk[index + 1]) ++index;
  const AdamTensor<T>& t = tensors.list[index];
  if (threadIdx.x == 0)  // two powers in double: once a block
    shared_step = adam_step<C>(options, learning_rate_tensor != nullptr ? *learning_rate_tensor : learning_rate,
                               double{*t.step} + 1);
  __syncthreads();
  const AdamStep<C> step = shared_step;
  const bool aligned = is_aligned(t);
  const int64_t begin = int64_t{blockIdx.x - tensors.first_chunk[index]} * chunk;
  const int64_t end = begin + chunk < t.n ? begin + chunk : t.n;
  for (int64_t i = begin + threadIdx.x * length; i < end; i += threads * length) {
    C param[length], grad[length], average[length], square[length], most[length] = {};
    load_elements(t.param, i, end, aligned, param);
    load_elements(t.grad, i, end, aligned, grad);
    load_elements(t.exp_avg, i, end, aligned, average);
    load_elements(t.exp_avg_sq, i, end, aligned, square);
    if (options.amsgrad) load_elements(t.max_exp_avg_sq, i, end, aligned, most);
#pragma unroll
    for (int k = 0; k < length; ++k)
      adam_update(step, options.amsgrad, grad[k], param[k], average[k], square[k], most[k]);
    store_elements(t.param, i, end, aligned, param);
    store_elements(t.exp_avg, i, end, aligned, average);
    store_elements(t.exp_avg_sq, i, end, aligned, square);
    if (options.amsgrad) store_elements(t.max_exp_avg_sq, i, end, aligned, most);
  }
  if (!is_last_block(counter, gridDim.x)) return;  // all blocks have read their steps
  for (int k = threadIdx.x; k < tensors.count; k += threads) *tensors.list[k].step += 1;
}

constexpr int most_due = 24;

struct DueList {
  AdamDue list[most_due];
  double steps_done[most_due];
};
static_assert(sizeof(DueList) + 32 <= 4096, "the parameters of a kernel");

__device__ __forceinline__ void set_count(const AdamDue& due, double done) {
  if (due.step != nullptr)
    *due.step = float(done);
  else
    *due.double_step = done;
}

__global__ void set_adam_kernel(const __grid_constant__ DueList due, int count, AdamDue* on_device) {
  const int k = threadIdx.x;
  if (k >= count) return;
  on_device[k] = due.list[k];
  if (due.steps_done[k] >= 0) set_count(due.list[k], due.steps_done[k]);
}

template <class T>
__global__ void __launch_bounds__(threads) prepare_adam_kernel(const AdamDue* due, int count, AdamStep<T>* steps) {
  const int k = blockIdx.x * threads + threadIdx.x;
  if (k >= count) return;
  const AdamDue& d = due[k];
  const double done = (d.step != nullptr ? double{*d.step} : *d.double_step) + 1;
  set_count(d, done);
  steps[k] =
      adam_step<T>(d.options, d.learning_rate_tensor != nullptr ? *d.learning_rate_tensor : d.learning_rate, done);
}

}  // namespace

void set_adam(const Context& context, const AdamDue* due, const double* steps_done, int count, AdamDue* on_device) {
  for (int first = 0; first < count; first += most_due) {
    const int some = std::min(most_due, count - first);
    DueList list = {};
    std::copy_n(due + first, some, list.list);
    std::copy_n(steps_done + first, some, list.steps_done);
    launch(context, "set_adam", set_adam_kernel, Grid{dim3(1), dim3(most_due)}, list, some, on_device + first);
  }
}

template <class T>
void prepare_adam(const Context& context, const AdamDue* on_device, int count, AdamStep<T>* steps) {
  if (count == 0) return;
  launch(context, "prepare_adam", prepare_adam_kernel<T>,
         Grid{dim3(static_cast<unsigned>((count + threads - 1) / threads)), dim3(threads)}, on_device, count, steps);
}

template void prepare_adam<float>(const Context&, const AdamDue*, int, AdamStep<float>*);
template void prepare_adam<double>(const Context&, const AdamDue*, int, AdamStep<double>*);

template <class T>
void adam(const Context& context, const AdamTensor<T>* tensors, int count, const AdamOptions& options,
          double learning_rate, const float* learning_rate_tensor) {
  for (int first = 0; first < count; first += most_tensors) {
    Tensors<T> some = {};
    some.count = std::min(most_tensors, count - first);
    for (int k = 0; k < some.count; ++k) {
      some.list[k] = tensors[first + k];
      // An empty tensor has a chunk too, for the search; its step counts as well.
      some.first_chunk[k + 1] =
          some.first_chunk[k] + static_cast<unsigned>(std::max<int64_t>(1, (some.list[k].n + chunk - 1) / chunk));
    }
    launch(context, "adam", adam_kernel<T>, Grid{dim3(some.first_chunk[some.count]), dim3(threads)}, some, options,
           learning_rate, learning_rate_tensor, context.counters());
  }
}

#define FASTGAN_INSTANTIATE(T) \
  template void adam<T>(const Context&, const AdamTensor<T>*, int, const AdamOptions&, double, const float*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
FASTGAN_INSTANTIATE(bfloat16)
FASTGAN_INSTANTIATE(float16)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
