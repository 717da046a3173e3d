#include "linear.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace fastgan::cpu {

namespace {

// Rows a block: about one chunk of elements, so that a block stays in the first-level cache between its passes; more
// where there would be over 64 blocks of them, for each has its own column sums.
int64_t block_rows(int64_t rows, int64_t cols) {
  return std::max({int64_t{1}, chunk_size / std::max<int64_t>(1, cols), (rows + 63) / 64});
}

// Elements of a piecewise linear activation cost a fraction of one with an exponential.
int64_t work_of(ActivationArguments arguments, int64_t n) {
  return is_piecewise_linear(arguments.activation) ? n / 4 : n;
}

template <class F>
void for_row_blocks(int64_t rows, int64_t cols, int64_t work, const F& f) {
  const int64_t size = block_rows(rows, cols);
  for_chunks((rows + size - 1) / size, work,
             [&](int64_t block) { f(block, block * size, std::min(rows, (block + 1) * size)); });
}

// Calls f with the Act and the slope in the type of arithmetic.
template <class T, class F>
void dispatch(ActivationArguments arguments, const F& f) {
  with_activation(arguments.activation, [&](auto act) { f(act, compute_t<T>(arguments.negative_slope)); });
}

}  // namespace

template <class T>
void bias_act(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, T* z, const T* bias, T* y) {
  using C = compute_t<T>;
  if (arguments.activation == Activation::identity && bias == nullptr && y == z) return;
  dispatch<T>(arguments, [&](auto act, C slope) {
    using A = decltype(act);
    if (bias == nullptr)  // z has its value already, and a store of 16 bits is more work than most activations
      return for_chunks(chunk_count(rows * cols), work_of(arguments, rows * cols), [&](int64_t chunk) {
        const int64_t begin = chunk * chunk_size, end = std::min(rows * cols, begin + chunk_size);
        simd_for(begin, end, FASTGAN_BODY(i) { store(y + i, A::value(load(z + i), slope)); });
      });
    for_row_blocks(rows, cols, work_of(arguments, rows * cols), [&](int64_t, int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        T *zr = z + r * cols, *yr = y + r * cols;
        if (y == z)
          simd_for(0, cols, FASTGAN_BODY(c) { store(yr + c, A::value(load(zr + c) + load(bias + c), slope)); });
        else
          simd_for(
              0, cols, FASTGAN_BODY(c) {
                const C value = load(zr + c) + load(bias + c);
                store(zr + c, value);
                store(yr + c, A::value(value, slope));
              });
      }
    });
  });
}

namespace {

// Columns of which a loop along a row is mostly its own overhead.
constexpr int64_t few_columns = 8;

// act_backward of few columns: one loop over a block of rows for the activation, and one down each column.
template <class T>
void narrow_act_backward(ActivationArguments arguments, int64_t rows, int64_t cols, const T* grad_y, const T* saved,
                         T* grad_z, T* grad_bias) {
  using C = compute_t<T>;
  constexpr int64_t most_blocks = 64, group_rows = 16;
  const int64_t size = block_rows(rows, cols), blocks = (rows + size - 1) / size;
  double totals[most_blocks][few_columns] = {};
  const bool identity = arguments.activation == Activation::identity;
  for_row_blocks(rows, cols, work_of(arguments, rows * cols), [&](int64_t block, int64_t begin, int64_t end) {
    if (!identity)
      dispatch<T>(arguments, [&](auto act, C slope) {
        using A = decltype(act);
        simd_for(
            begin * cols, end * cols,
            FASTGAN_BODY(i) { store(grad_z + i, gradient<A>(load(grad_y + i), load(saved + i), slope)); });
      });
    else if (grad_z != nullptr && grad_z != grad_y)
      simd_for(begin * cols, end * cols, FASTGAN_BODY(i) { grad_z[i] = grad_y[i]; });
    const T* const summed = identity ? grad_y : grad_z;
    for (int64_t c = 0; grad_bias != nullptr && c < cols; ++c)
      for (int64_t first = begin; first < end; first += group_rows) {
        C sum = 0;
        for (int64_t r = first; r < std::min(end, first + group_rows); ++r) sum += load(summed + r * cols + c);
        totals[block][c] += sum;
      }
  });
  for (int64_t c = 0; grad_bias != nullptr && c < cols; ++c) {
    for (int64_t block = 1; block < blocks; ++block) totals[0][c] += totals[block][c];
    store(grad_bias + c, static_cast<C>(totals[0][c]));
  }
}

}  // namespace

template <class T>
void act_backward(const Context&, ActivationArguments arguments, int64_t rows, int64_t cols, const T* grad_y,
                  const T* saved, T* grad_z, T* grad_bias) {
  using C = compute_t<T>;
  if (cols > 0 && cols <= few_columns)
    return narrow_act_backward(arguments, rows, cols, grad_y, saved, grad_z, grad_bias);
  const int64_t size = block_rows(rows, cols), blocks = (rows + size - 1) / size;
  // A block's column sums, to which those of a few rows are added: one sum of all its rows in the type of arithmetic
  // would round each time by a share of what it has reached.
  constexpr int64_t group_rows = 16;
  const int64_t sums_kept = grad_bias == nullptr ? 0 : std::max<int64_t>(1, blocks) * cols;
  std::vector<double> totals(sums_kept, 0);
  std::vector<C> groups(sums_kept, C(0));
  const bool identity = arguments.activation == Activation::identity;
  dispatch<T>(arguments, [&](auto act, C slope) {
    using A = decltype(act);
    for_row_blocks(rows, cols, work_of(arguments, rows * cols), [&](int64_t block, int64_t begin, int64_t end) {
      double* const total = grad_bias == nullptr ? nullptr : totals.data() + block * cols;
      C* const sums = grad_bias == nullptr ? nullptr : groups.data() + block * cols;
      for (int64_t r = begin; r < end; ++r) {
        const T *gr = grad_y + r * cols, *sr = saved + r * cols;
        T* zr = grad_z == nullptr ? nullptr : grad_z + r * cols;
        if (identity) {
          if (grad_bias != nullptr) simd_for(0, cols, FASTGAN_BODY(c) { sums[c] += load(gr + c); });
          if (grad_z != nullptr && grad_z != grad_y) simd_for(0, cols, FASTGAN_BODY(c) { zr[c] = gr[c]; });
        } else if (grad_bias != nullptr) {
          simd_for(
              0, cols, FASTGAN_BODY(c) {
                const C value = gradient<A>(load(gr + c), load(sr + c), slope);
                store(zr + c, value);
                sums[c] += value;
              });
        } else {
          simd_for(0, cols, FASTGAN_BODY(c) { store(zr + c, gradient<A>(load(gr + c), load(sr + c), slope)); });
        }
        if (grad_bias != nullptr && (r + 1 == end || (r + 1 - begin) % group_rows == 0))
          simd_for(
              0, cols, FASTGAN_BODY(c) {
                total[c] += sums[c];
                sums[c] = 0;
              });
      }
    });
  });
  if (grad_bias == nullptr) return;
  double* const all = totals.data();  // the first block's sums, to which the others are added in order
  for_chunks(chunk_count(cols), blocks * cols / 4, [&](int64_t chunk) {
    const int64_t begin = chunk * chunk_size, end = std::min(cols, begin + chunk_size);
    for (int64_t block = 1; block < blocks; ++block) {
      const double* const sums = all + block * cols;
      simd_for(begin, end, FASTGAN_BODY(c) { all[c] += sums[c]; });
    }
    simd_for(begin, end, FASTGAN_BODY(c) { store(grad_bias + c, static_cast<C>(all[c])); });
  });
}

template <class T>
void act_double_backward(const Context&, ActivationArguments arguments, int64_t n, const T* u, const T* grad_y,
                         const T* saved, T* grad_grad_y, T* grad_z2) {
  using C = compute_t<T>;
  dispatch<T>(arguments, [&](auto act, C slope) {
    using A = decltype(act);
    for_chunks(chunk_count(n), work_of(arguments, n), [&](int64_t chunk) {
      const int64_t begin = chunk * chunk_size, end = std::min(n, begin + chunk_size);
      if (grad_z2 == nullptr)
        simd_for(
            begin, end, FASTGAN_BODY(i) { store(grad_grad_y + i, gradient<A>(load(u + i), load(saved + i), slope)); });
      else
        simd_for(
            begin, end, FASTGAN_BODY(i) {
              const C value = load(u + i), s = load(saved + i);
              store(grad_z2 + i, value * load(grad_y + i) * A::dd(s, slope));
              store(grad_grad_y + i, gradient<A>(value, s, slope));
            });
    });
  });
}

#define FASTGAN_INSTANTIATE(T)                                                                                         \
  template void bias_act<T>(const Context&, ActivationArguments, int64_t, int64_t, T*, const T*, T*);                  \
  template void act_backward<T>(const Context&, ActivationArguments, int64_t, int64_t, const T*, const T*, T*, T*);    \
  template void act_double_backward<T>(const Context&, ActivationArguments, int64_t, const T*, const T*, const T*, T*, \
                                       T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
