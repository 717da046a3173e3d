// The whole step on a CUDA device, as csrc/cpu/step.h on the CPU: see core/step.h. T is float or double. Nothing here
// waits for the device, and every address is the same at each step of a problem, so the launches can be captured as one
// graph. The updates that are due lie on the device (adam.h).
#pragma once

#include "../core/step.h"
#include "linear.h"
#include "platform.h"
#include "step_parts.h"

namespace fastgan::cuda {

struct StepOptions {
  Rounding rounding = Rounding::none;
  bool narrow = false;  // networks that fit take the kernels of mlp.h
  OddLabels odd_labels;
  const double* noise_scale = nullptr;  // on the device: of the noise on D's inputs, where the problem has noise
};

// Bytes of workspace that the step of such a problem needs, aligned to 256.
template <class T>
size_t step_workspace(const Context& context, const StepProblem<T>& problem);

// G(z), or the fakes that are given, D's loss on real and fake and its penalties, its gradients, and the update of D
// alone, which is prepared by the way. Writes d_loss, penalty, real_score and fake_score on the device. No branch may
// have work left that reads what is prepared.
template <class T>
void discriminator_step(const Context& context, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        const StepOptions& options, const AdamPreparation<T>& adam);

// G's loss through D, its gradients, and the update of G alone (and its moving average). Fresh: G(z) of the problem's
// noise, else the fake of the last discriminator_step; always fresh where next_noise_follows. Writes g_loss on the
// device.
template <class T>
void generator_step(const Context& context, const StepProblem<T>& problem, void* workspace, bool fresh,
                    StepSums<T>* sums, const StepOptions& options, const AdamPreparation<T>& adam);

}  // namespace fastgan::cuda
