// A batch in panels of 32 samples: a panel of a matrix with `width` features is contiguous, [width][32], so a layer's
// weight, read as it stands, multiplies panels into panels, and everything element by element is a plain loop. The last
// panel's unused columns are computed like the others and then set to zero, activations and gradients alike.
#pragma once

#include <cstdint>

#include "../../core/mlp.h"

namespace fastgan::cpu {

constexpr int64_t panel = 32;

inline int64_t panel_count(int64_t batch) { return (batch + panel - 1) / panel; }

// A width, filled up to whole blocks of 32.
inline int64_t padded(int64_t width) { return (width + panel - 1) / panel * panel; }

// Samples in a panel of a batch.
inline int64_t samples_in(int64_t index, int64_t batch) {
  const int64_t left = batch - index * panel;
  return left < 0 ? 0 : left < panel ? left : panel;
}

// A matrix in panels.
template <class T>
struct Panels {
  T* data = nullptr;
  int64_t stride = 0;             // from one panel to the next
  int64_t group = 1, within = 0;  // or from one group of panels to the next, and from one to the next in a group

  T* at(int64_t index) const {
    return group == 1 ? data + index * stride : data + index / group * stride + index % group * within;
  }
};

// Layers as thin as this have their weight gradient from dot products along the batch.
constexpr int64_t thin_width = 8;

// What a linear layer reads and writes.
template <class T>
struct LinearBuffers : LayerMatrices<Panels<T>> {
  Panels<T> x;  // the input, which is the output of the layer before
  // Of bfloat16, where the products take those (linear_amx.h): x and grad_z with the features in pairs, [width /
  // 2][32][2]; widths are filled up to multiples of 32.
  uint16_t *x_pairs = nullptr, *grad_pairs = nullptr;
};

}  // namespace fastgan::cpu
