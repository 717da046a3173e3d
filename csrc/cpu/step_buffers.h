// The workspace of the whole step on the CPU.
#pragma once

#include "../core/step.h"
#include "panels/team.h"

namespace fastgan::cpu {

// What a layer reads and writes.
template <class T>
struct LayerBuffers : LinearBuffers<T> {
  // linear, for the weight gradient: x with the samples as rows, [in / 32][samples][32]; or of bfloat16, grad_z, and x
  // with the samples in pairs, [in / 16][panels][16][16][2].
  T* x_rows = nullptr;
  uint16_t *grad_rounded = nullptr, *x_transposed = nullptr;
  T* mask = nullptr;     // dropout: in panels, times the scale
  T* moments = nullptr;  // batch_norm: mean and 1 / standard deviation of each half: [half][2][width]
  T* sums = nullptr;     // batch_norm: of a panel, [panels][2][width]; backward: then of a half
};

template <class T>
struct NetworkBuffers {
  Panels<T> input;
  LayerBuffers<T>* layers = nullptr;
  int64_t panels = 0;  // that fit
};

template <class T>
struct StepBuffers {
  NetworkBuffers<T> generator, discriminator;
  double* sums = nullptr;  // of a panel: loss and score, [2 panels][2]
  int64_t panels = 0;      // of one half
};

}  // namespace fastgan::cpu
