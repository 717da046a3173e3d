// The whole step on the CPU, without autograd and without allocation: see core/step.h. T is float or double.
#pragma once

#include "../core/step.h"
#include "context.h"

namespace fastgan::cpu {

// What the time of a step goes to: X(name), in the order of the work.
#define FASTGAN_STEP_PHASES(X) \
  X(inputs)                    \
  X(generator_forward)         \
  X(discriminator_forward)     \
  X(discriminator_backward)    \
  X(discriminator_update)      \
  X(generator_backward)        \
  X(generator_update)

enum class StepPhase : int { FASTGAN_STEP_PHASES(FASTGAN_ENUMERATOR) };
constexpr const char* step_phase_names[] = {FASTGAN_STEP_PHASES(FASTGAN_NAME)};
constexpr int step_phase_count = sizeof(step_phase_names) / sizeof(step_phase_names[0]);

// Whether this processor, and this build, have what StepProblem::bf16 takes (AVX-512 BF16 or AMX).
bool has_bf16_step();

// Bytes of workspace that the step of such a problem needs, aligned to 64; it must be all zeros before the first use.
template <class T>
size_t step_workspace(const Context&, const StepProblem<T>& problem);

// G(z), D's loss on real and fake, its gradients, and the update of D alone. Writes d_loss, real_score and fake_score,
// and adds to seconds[phase] where that is not null. Where gradients_follow, it ends before the gradients of weights.
template <class T>
void discriminator_step(const Context&, const StepProblem<T>& problem, void* workspace, StepSums<T>* sums,
                        double* seconds = nullptr, bool gradients_follow = false);

// G's loss through D, its gradients, and the update of G alone (and its moving average). Fresh: G(z) of the problem's
// noise, else the fake of the last discriminator_step. Writes g_loss.
template <class T>
void generator_step(const Context&, const StepProblem<T>& problem, void* workspace, bool fresh, StepSums<T>* sums,
                    double* seconds = nullptr, bool gradients_follow = false);

// Layers [first, last) of a network.
struct LayerRange {
  int first, last;
};

// Elements of StepNetwork::gradients, where the gradients are handed in, of some layers.
template <class T>
int64_t gradient_elements(const StepNetwork<T>& network, LayerRange range);

// After a step with gradients_follow, of some layers: with its problem and its workspace.
template <class T>
void hand_in_gradients(const Context&, const StepProblem<T>& problem, void* workspace, bool of_generator,
                       LayerRange range, double* seconds = nullptr);

// The last part of a step whose gradients were handed in: the update of some layers by them, times gradient_scale, and
// clipped, which takes all layers at once. With the problem and the workspace of what came before.
template <class T>
void apply_gradients(const Context&, const StepProblem<T>& problem, void* workspace, bool of_generator,
                     LayerRange range, double* seconds = nullptr);

}  // namespace fastgan::cpu
