// The updates by Adam and AdamW that a step on CUDA makes: what each depends on. T is float or double.
#pragma once

#include "../core/adam.h"
#include "platform.h"

namespace fastgan::cuda {

// What the coming update of a parameter depends on, as it lies in device memory for the whole step.
struct AdamDue {
  AdamOptions options;
  double learning_rate;
  const float* learning_rate_tensor;  // read instead, where that is not null
  float* step;                        // updates done; where it is null, those are in double_step
  double* double_step;
};

// Copies `count` of them to the device, by way of the kernel's parameters: nothing on the host has to stay, and nobody
// waits. Where steps_done[k] is not negative, the count of updates that due[k] points to becomes that.
void set_adam(const Context& context, const AdamDue* due, const double* steps_done, int count, AdamDue* on_device);

// What the launch of a loss does beside, for the updates that follow (prepare_adam in adam_parameter.h): counts one
// more update for each of `count` parameters, and makes what their updates take, what is due in double, of T what it
// is.
template <class T>
struct AdamPreparation {
  const AdamDue* due = nullptr;  // on the device
  int count = 0;
  AdamStep<T>* steps = nullptr;
};

}  // namespace fastgan::cuda
