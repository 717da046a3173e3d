// What the updates of a step depend on, made on the device: learning rates and counts of updates may stay there, so
// that a captured graph sees them change.
#include <algorithm>

#include "adam.h"
#include "elementwise.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;
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

}  // namespace fastgan::cuda
