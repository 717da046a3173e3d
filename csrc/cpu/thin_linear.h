// Products of a linear layer with up to four outputs, or up to four inputs, each in one pass that reads the wide matrix
// once: nothing is packed, and no tile is mostly empty. Declared as linear.h is; the wide matrix may have rows that are
// set off from each other, and all else is contiguous.
//
// All three are products of a wide matrix, (rows, cols), and a thin one of `few` columns or rows:
//   few outputs    forward: dots    by the input: outer    by the weight: sums
//   few inputs     forward: outer   by the input: dots     by the weight: sums
#pragma once

#include <cstdint>

#include "../core/activation.h"
#include "context.h"

namespace fastgan::cpu {

// What counts as thin.
constexpr int64_t most_few = 4;

// Where the thin matrix lies, as (few, cols): element (i, c) at data[i * few_stride + c * col_stride].
template <class T>
struct ThinMatrix {
  const T* data;
  int64_t few_stride, col_stride;
};

// y = activation(x w^T + bias), (rows, few): of each row of x, its sums of products with the few rows of w. bias may be
// null; so may z, the pre-activation, where it is not wanted, or y where z is the result.
template <class T>
void thin_dots(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, int few, const T* x,
               int64_t x_stride, ThinMatrix<T> w, const T* bias, T* z, T* y);

// y = activation(s w + bias), (rows, cols), where s is (rows, few), its rows s_stride apart. bias and z as above.
template <class T>
void thin_outer(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, int few, const T* s,
                int64_t s_stride, ThinMatrix<T> w, const T* bias, T* z, T* y);

// out = s^T x, (few, cols), or, where `transposed` is set, its transpose: the sums over the rows of s times x.
template <class T>
void thin_sums(const Context&, int64_t rows, int64_t cols, int few, const T* s, int64_t s_stride, const T* x,
               int64_t x_stride, bool transposed, T* out);

}  // namespace fastgan::cpu
