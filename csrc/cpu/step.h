// The whole step on the CPU, without autograd and without allocation: see core/step.h. T is float or double.
#pragma once

#include "../core/step.h"
#include "context.h"

namespace fastgan::cpu {

// Bytes of workspace that the step of such a problem needs, aligned to 64; it must be all zeros before the first use.
template <class T>
size_t step_workspace(const Context&, const StepProblem<T>& problem);

// G(z), D's loss on real and fake, its gradients, and the update of D alone. Adds no noise of its own: masks and noise
// are in the problem. Writes d_loss, real_score and fake_score.
template <class T>
void discriminator_step(const Context&, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums);

// G's loss through D, its gradients, and the update of G alone (and its moving average). Fresh: G(z) of the problem's
// noise, else the fake of the last discriminator_step. Writes g_loss.
template <class T>
void generator_step(const Context&, const StepProblem<T>& problem, void* workspace, bool fresh, StepSums<T>* sums);

}  // namespace fastgan::cpu
