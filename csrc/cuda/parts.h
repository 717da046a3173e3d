// One batch of D is of several parts, each of its own mean, dropout masks and batch normalisation: see core/step.h.
#pragma once

#include "../core/step.h"
#include "platform.h"

namespace fastgan::cuda {

// Rows that lie part after part, from the first of them on.
struct Parts {
  int count = 0;
  int64_t begin[most_parts + 1] = {};

  FASTGAN_INLINE int64_t rows() const { return begin[count]; }
  FASTGAN_INLINE int64_t rows_of(int part) const { return begin[part + 1] - begin[part]; }
  FASTGAN_INLINE int of_row(int64_t row) const {
    int part = 0;
    while (part + 1 < count && row >= begin[part + 1]) ++part;
    return part;
  }

  void add(int64_t rows) {
    begin[count + 1] = begin[count] + rows;
    ++count;
  }
  // Some of them, whose rows are counted anew.
  Parts some(int first, int end) const {
    Parts some;
    for (int part = first; part < end; ++part) some.add(rows_of(part));
    return some;
  }
};

}  // namespace fastgan::cuda
