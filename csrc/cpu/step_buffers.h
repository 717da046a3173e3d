// The workspace of the whole step on the CPU.
#pragma once

#include "panels/team.h"

namespace fastgan::cpu {

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
