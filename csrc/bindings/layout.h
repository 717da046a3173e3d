// The strides of elementwise results, as torch's own ops choose them, and the order in which a kernel, which takes
// memory without gaps, walks through tensors of such strides.
#pragma once

#include <numeric>

#include "common.h"

namespace fastgan::bindings {

// Sizes and strides, symbolic ones too.
struct Layout {
  explicit Layout(const Tensor& tensor)
      : sizes(tensor.sym_sizes().vec()), strides(tensor.sym_strides().vec()), is_contiguous(tensor.is_contiguous()) {}
  Layout() = default;

  std::vector<c10::SymInt> sizes, strides;
  bool is_contiguous = true;
};

// Of a new tensor: the last dimension is the quickest.
inline Layout contiguous_layout(c10::SymIntArrayRef sizes) {
  Layout out;
  out.sizes = sizes.vec();
  out.strides.resize(sizes.size());
  c10::SymInt stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    out.strides[d] = stride;
    stride = stride * sizes[d].max(1);
  }
  return out;
}

// The layout of an elementwise op's result of shape `sizes`, to which its operands broadcast: what at::TensorIterator
// computes (its reorder_dimensions and fast setup), here for symbolic sizes and without making the result.
inline Layout elementwise_layout(c10::SymIntArrayRef sizes, const std::vector<Layout>& operands) {
  const bool same_shape = std::all_of(operands.begin(), operands.end(),
                                      [&](const Layout& x) { return c10::SymIntArrayRef(x.sizes) == sizes; });
  const size_t n = sizes.size();
  if (same_shape && std::all_of(operands.begin(), operands.end(), [](const Layout& x) { return x.is_contiguous; }))
    return contiguous_layout(sizes);
  // Aligned at the last dimension; a broadcast dimension has stride zero, which says nothing about the order.
  std::vector<std::vector<c10::SymInt>> strides;
  for (const Layout& x : operands) {
    std::vector<c10::SymInt> aligned(n, 0);
    const size_t missing = n - x.sizes.size();
    for (size_t d = missing; d < n; ++d)
      if (!(x.sizes[d - missing] == 1 && sizes[d] != 1)) aligned[d] = x.strides[d - missing];
    strides.push_back(std::move(aligned));
  }
  // Positive where dimension a is to come after b, negative where before, zero where no operand says.
  const auto compare = [&](size_t a, size_t b) {
    for (const auto& stride : strides) {
      if (stride[a] == 0 || stride[b] == 0) continue;
      if (stride[a] < stride[b]) return -1;
      if (stride[a] > stride[b] || sizes[a] > sizes[b]) return 1;
    }
    return 0;
  };
  std::vector<size_t> order(n);  // from the quickest dimension to the slowest
  std::iota(order.rbegin(), order.rend(), 0);
  for (size_t i = 1; i < n; ++i) {
    size_t place = i;
    for (size_t before = i; before-- > 0;) {
      const int comparison = compare(order[before], order[place]);
      if (comparison < 0) break;
      if (comparison > 0) {
        std::swap(order[before], order[place]);
        place = before;
      }
    }
  }
  Layout out = contiguous_layout(sizes);
  bool is_inverted = true;
  for (size_t i = 0; i < n; ++i) is_inverted = is_inverted && order[i] == n - 1 - i;
  if (is_inverted) return out;
  out.is_contiguous = false;
  c10::SymInt stride = 1;
  for (const size_t d : order) {
    out.strides[d] = stride;
    stride = stride * sizes[d];
  }
  return out;
}

// The layout of a pointwise function of one tensor.
inline Layout unary_layout(const Tensor& x) {
  if (x.is_contiguous()) return contiguous_layout(x.sym_sizes());
  if (x.is_non_overlapping_and_dense()) return Layout(x);
  return elementwise_layout(x.sym_sizes(), {Layout(x)});
}

inline Tensor empty_of(const Layout& layout, const at::TensorOptions& options) {
  return at::empty_strided_symint(layout.sizes, layout.strides, options);
}

// An order of dimensions, the slowest first: that of the memory of a tensor without gaps.
class MemoryOrder {
 public:
  explicit MemoryOrder(const Tensor& dense) {
    if (dense.is_contiguous()) return;
    order_.resize(dense.dim());
    std::iota(order_.begin(), order_.end(), 0);
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      return dense.stride(a) > dense.stride(b) || (dense.stride(a) == dense.stride(b) && dense.size(a) > dense.size(b));
    });
  }

  bool is_usual() const { return order_.empty(); }

  // The elements of a tensor in this order, copied where its memory has another.
  Tensor read(const Tensor& tensor) const { return arranged(tensor).contiguous(); }

  // Calls write(memory) with memory for the elements of `out` in this order: its own where that has it.
  template <class F>
  void write(const Tensor& out, const F& write) const {
    const Tensor view = arranged(out);
    if (view.is_contiguous()) return write(view);
    const Tensor memory = at::empty(view.sizes(), out.options());
    write(memory);
    view.copy_(memory);
  }

 private:
  Tensor arranged(const Tensor& tensor) const { return is_usual() ? tensor : tensor.permute(order_); }

  std::vector<int64_t> order_;
};

}  // namespace fastgan::bindings
