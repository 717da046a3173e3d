// CPU kernels of the segmented activation (csrc/core/segmented.h): one pass over all runs, forward, backward and for
// the derivative of backward. Memory is contiguous; T is float, double, bfloat16 or float16.
#pragma once

#include "../core/segmented.h"
#include "context.h"

namespace fastgan::cpu {

template <class T>
void segmented(const Context&, const Segments& segments, const SegmentedPass<T>& pass);

// Of consecutive runs, which fit into the scratch memory of a thread together.
struct SegmentStrip {
  int first = 0, last = 0;  // runs
  int64_t begin = 0, end = 0, noise_begin = 0, noise_end = 0;
};

// How a matrix is cut into strips for the kernel of an instruction set, and a thread's memory for it.
template <class C>
struct SegmentedBuffers {
  const SegmentStrip* strips;
  int count;
  // Three matrices in panels, [width][32], and one of rows, [32][width], for the 16-bit types.
  C* panels[3];
  C* rows;
};

}  // namespace fastgan::cpu
