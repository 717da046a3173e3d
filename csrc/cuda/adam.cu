// What the updates of a step depend on, set on the device: learning rates and counts of updates may stay there, so that
// a captured graph sees them change.
#include <algorithm>

#include "adam.h"
#include "adam_parameter.h"

namespace fastgan::cuda {

namespace {

constexpr int most_due = 24;

struct DueList {
  AdamDue list[most_due];
  double steps_done[most_due];
};
static_assert(sizeof(DueList) + 32 <= 4096, "the parameters of a kernel");

__global__ void set_adam_kernel(const __grid_constant__ DueList due, int count, AdamDue* on_device) {
  const int k = threadIdx.x;
  if (k >= count) return;
  on_device[k] = due.list[k];
  if (due.steps_done[k] >= 0) set_count(due.list[k], due.steps_done[k]);
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

}  // namespace fastgan::cuda
