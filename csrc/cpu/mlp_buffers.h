// How mlp.cpp, which is compiled for any processor, and the work of each instruction set share the scratch memory of a
// whole MLP.
#pragma once

#include <algorithm>

#include "mlp.h"
#include "panels/team.h"

namespace fastgan::cpu {

// Samples that go through the layers of a forward pass at once, a thread: they bound the scratch memory.
constexpr int64_t panels_a_thread = 16;

// Samples over which a weight gradient is summed at once; the sums of the next ones are added to it.
constexpr int64_t samples_at_once = 1024;

// Of these, as many are added one to the other, and then as one to the sum of those before: each addition rounds by a
// share of what the sum has reached.
constexpr int64_t samples_a_chain = 64;

// Tiles of samples whose gradients a thread takes through a layer at once.
constexpr int64_t row_tiles_at_once = 16;

template <class T>
struct MlpForwardBuffers {
  Panels<T> even, odd;  // the inputs of the even and of the odd layers, each of the largest width
  Panels<T> z;
};

template <class T>
struct MlpBackwardBuffers {
  T *even, *odd;  // grad_z of the even and of the odd layers, (batch, width)
  T* x_rows;      // a layer's input in blocks of 32 columns: [in / 32][samples][32]
  T* own;         // a thread's own, own_size elements each
  int64_t own_size;
};

template <class T>
struct MlpDoubleBackwardBuffers : MlpBackwardBuffers<T> {
  T* z_bar;  // of each layer from lowest on with a curved activation: (batch, out), one after the other
};

// Of panels/product.h, for every instruction set.
constexpr int64_t most_tile_rows = 14;
template <class T>
constexpr int64_t most_copied = (1024 + 64) / sizeof(T);

// A tile of a weight and the gradients that it multiplies, or some columns of gradients and of inputs.
template <class T>
constexpr int64_t own_size(int64_t batch) {
  const int64_t product =
      1024 / sizeof(T) * panel + std::min(batch, row_tiles_at_once * most_tile_rows) * most_copied<T>;
  return std::max(product, std::min(batch, samples_at_once) * (16 + panel));
}

}  // namespace fastgan::cpu
