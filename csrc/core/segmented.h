// Runs of columns, each with an activation of its own: what ends the generator of a table. The compiled twin of
// reference.SEGMENT_KINDS.
//
// Of a softmax y = softmax(s (x + g)) over the columns of a run, s = 1 without noise and s = 1 / tau with Gumbel draws
// g (Jang et al. 2016, arXiv:1611.01144, eq. 1), all derivatives are functions of y:
//   gradient by x of v by y          s y_k (v_k - m),                m = sum_j y_j v_j
//   of that, against c, by v         s y_k (c_k - n),                n = sum_j y_j c_j
//   of that, against c, by y         s ((c_k - n) v_k - m c_k)
#pragma once

#include <cstdint>

#include "activation.h"

#define FASTGAN_SEGMENT_KINDS(X) X(tanh) X(identity) X(softmax) X(gumbel_softmax)

namespace fastgan {

enum class SegmentKind : int32_t { FASTGAN_SEGMENT_KINDS(FASTGAN_ENUMERATOR) };
constexpr const char* segment_kind_names[] = {FASTGAN_SEGMENT_KINDS(FASTGAN_NAME)};
constexpr int segment_kind_count = sizeof(segment_kind_names) / sizeof(segment_kind_names[0]);

// A run of columns. gumbel_softmax: `noise` is the first of its columns among the draws.
struct Segment {
  int32_t begin, width, noise;
  SegmentKind kind;
};

// All runs of a row, in order and without gaps; the draws are rows of `gumbel_columns`.
struct Segments {
  const Segment* list;
  int count;
  int64_t columns, gumbel_columns;
  double tau;

  FASTGAN_INLINE double factor(const Segment& segment) const {
    return segment.kind == SegmentKind::gumbel_softmax ? 1 / tau : 1;
  }
};

FASTGAN_INLINE bool is_softmax(SegmentKind kind) {
  return kind == SegmentKind::softmax || kind == SegmentKind::gumbel_softmax;
}

// What is read and written, matrices of `rows` rows; noise is read in the type of arithmetic. Where `input` is not null
// it is the forward pass; else output and grad_output are read, and where `cotangent` is not null it is the derivative
// of backward.
template <class T>
struct SegmentedPass {
  int64_t rows;
  const T* input = nullptr;
  const compute_t<T>* noise = nullptr;  // null where no run is gumbel_softmax
  T* y = nullptr;                       // forward: what is made

  const T *output = nullptr, *grad_output = nullptr, *cotangent = nullptr;
  T* grad_input = nullptr;                            // backward
  T *by_grad_output = nullptr, *by_output = nullptr;  // the derivative of backward
};

// The derivatives of one column that is not of a softmax.
template <class A, class C>
FASTGAN_INLINE C pointwise_by_output(C y, C v, C c) {
  if constexpr (std::is_same_v<A, Act<Activation::tanh>>) return C(-2) * y * v * c;
  return C(0);
}

template <class C>
FASTGAN_INLINE C softmax_gradient(C y, C v, C mean, C factor) {
  return factor * (y * (v - mean));
}
template <class C>
FASTGAN_INLINE C softmax_by_output(C v, C c, C mean_v, C mean_c, C factor) {
  return factor * ((c - mean_c) * v - mean_v * c);
}

}  // namespace fastgan
