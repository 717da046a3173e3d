// The runs of columns of a segmented activation (csrc/core/segmented.h), as Python names them.
#pragma once

#include <ATen/core/Tensor.h>

#include <limits>
#include <vector>

#include "../core/segmented.h"
#include "common.h"

namespace fastgan::bindings {

// The runs of a call, of which neighbours that are computed column by column are one.
class SegmentList {
 public:
  SegmentList(const char* op, at::IntArrayRef widths, at::IntArrayRef kinds, double tau) {
    TORCH_CHECK(widths.size() == kinds.size(), op, ": widths and kinds must have the same number of entries, not ",
                widths.size(), " and ", kinds.size());
    TORCH_CHECK(tau > 0, op, ": tau must be greater than 0, not ", tau);
    int64_t columns = 0, noise = 0;
    for (size_t i = 0; i < widths.size(); ++i) {
      TORCH_CHECK(widths[i] > 0 && columns + widths[i] <= std::numeric_limits<int32_t>::max(), op, ": widths[", i,
                  "] must be at least 1, and their sum below 2^31, not ", widths[i]);
      TORCH_CHECK(kinds[i] >= 0 && kinds[i] < segment_kind_count, op, ": kinds[", i, "] must be at least 0 and below ",
                  segment_kind_count, ", not ", kinds[i]);
      const auto kind = static_cast<SegmentKind>(kinds[i]);
      const auto width = static_cast<int32_t>(widths[i]);
      if (!list_.empty() && !is_softmax(kind) && list_.back().kind == kind)
        list_.back().width += width;
      else
        list_.push_back({static_cast<int32_t>(columns), width, static_cast<int32_t>(noise), kind});
      columns += width;
      if (kind == SegmentKind::gumbel_softmax) noise += width;
    }
    segments_ = {list_.data(), static_cast<int>(list_.size()), columns, noise, tau};
  }
  SegmentList(const SegmentList&) = delete;  // segments_ points to list_

  const Segments& get() const { return segments_; }

  void check_columns(const char* op, const Tensor& rows) const {
    TORCH_CHECK(rows.dim() > 0 && rows.sym_size(-1) == segments_.columns, op, ": a tensor of shape ", rows.sym_sizes(),
                " must have ", segments_.columns, " columns, the sum of widths, as its last dimension");
  }

 private:
  std::vector<Segment> list_;
  Segments segments_;
};

}  // namespace fastgan::bindings
