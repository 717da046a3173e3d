// The workspace of the whole step on the CPU.
#pragma once

#include "../core/step.h"
#include "panels/team.h"

namespace fastgan::cpu {

// Elements of a gradient whose squares are summed at once.
constexpr int64_t clip_chunk = 4096;

// What a layer reads and writes.
template <class T>
struct LayerBuffers : LinearBuffers<T> {
  // linear, for the weight gradient: x with the samples as rows, [in / 32][samples][32]; or of bfloat16, grad_z, and x
  // with the samples in pairs, [in / 16][panels][16][16][2].
  T* x_rows = nullptr;
  uint16_t *grad_rounded = nullptr, *x_transposed = nullptr;
  int64_t short_panels = 0, short_samples = panel;  // the last panels of all parts, and the most samples of one of them
  T* mask = nullptr;      // dropout: in panels, times the scale; segmented: the Gumbel draws in panels
  T* moments = nullptr;   // batch_norm: mean and 1 / standard deviation of each part: [part][2][width]
  T* sums = nullptr;      // batch_norm: of a panel, [panels][2][width]; backward: then of a part
  T* gradient = nullptr;  // where it is clipped: by the weight, then by the bias

  // Of D with penalties (step_penalties.h):
  Panels<T> tangent, tangent_of_y;  // of x, and of y, which is the next layer's x
  Panels<T> combined;               // of thin layers: what the weight gradient takes for x
  Panels<T> delta;                  // smooth networks: the gradient of the output by z
  Panels<T> curvature;        // smooth activations: delta's part of the second order, then that times the tangent of z
  T* tangent_rows = nullptr;  // smooth networks: the tangent as x_rows, a part after the other
};

template <class T>
struct NetworkBuffers {
  Panels<T> input;
  LayerBuffers<T>* layers = nullptr;
  int64_t panels = 0;         // that fit
  double* squares = nullptr;  // where the gradient is clipped: the sum of its squares, in chunks
};

template <class T>
struct StepBuffers {
  NetworkBuffers<T> generator, discriminator;
  int64_t panels = 0;      // of one part of D's batch
  int parts = 2;           // of D's batch that there is memory for
  double* sums = nullptr;  // of a panel of D: loss, score and penalty, [panels][3]
  T* slopes = nullptr;     // the loss's derivative by each logit: [panels][32]
  T* factors = nullptr;    // of the penalties: what the gradient by each input is multiplied by, [panels][32]
};

}  // namespace fastgan::cpu
