#include "linear.h"

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "strips.h"

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

// Loops over n values in the type of arithmetic.

template <class A, class C>
void values(int64_t n, const C* z, C slope, C* y) {
  simd_for(0, n, FASTGAN_BODY(i) { y[i] = A::value(z[i], slope); });
}

// With the bias; z is kept where that is not y's memory.
template <class A, class C>
void values_with_bias(int64_t n, const C* z, const C* bias, C slope, C* kept, C* y) {
  if (kept == nullptr) return simd_for(0, n, FASTGAN_BODY(i) { y[i] = A::value(z[i] + bias[i], slope); });
  simd_for(
      0, n, FASTGAN_BODY(i) {
        const C value = z[i] + bias[i];
        kept[i] = value;
        y[i] = A::value(value, slope);
      });
}

template <class A, class C>
void gradients(int64_t n, const C* grad_y, const C* saved, C slope, C* grad_z) {
  simd_for(0, n, FASTGAN_BODY(i) { grad_z[i] = gradient<A>(grad_y[i], saved[i], slope); });
}

template <class A, class C>
void gradients_and_sums(int64_t n, const C* grad_y, const C* saved, C slope, C* grad_z, C* sums) {
  simd_for(
      0, n, FASTGAN_BODY(i) {
        const C value = gradient<A>(grad_y[i], saved[i], slope);
        grad_z[i] = value;
        sums[i] += value;
      });
}

// The derivatives of gradients(), with u that of its result.
template <class A, class C>
void second_gradients(int64_t n, const C* u, const C* grad_y, const C* saved, C slope, C* grad_grad_y, C* grad_z2) {
  simd_for(
      0, n, FASTGAN_BODY(i) {
        const C value = u[i], s = saved[i];
        grad_z2[i] = value * grad_y[i] * A::dd(s, slope);
        grad_grad_y[i] = gradient<A>(value, s, slope);
      });
}

template <class C>
void add_to(int64_t n, const C* values, C* sums) {
  simd_for(0, n, FASTGAN_BODY(i) { sums[i] += values[i]; });
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
        Strip<T> in, out;
        for_strips<T>(chunk * chunk_size, std::min(rows * cols, (chunk + 1) * chunk_size),
                      [&](int64_t first, int64_t count) {
                        values<A>(count, in.read(z + first, count), slope, out.place(y + first));
                        out.write(y + first, count);
                      });
      });
    for_row_blocks(rows, cols, work_of(arguments, rows * cols), [&](int64_t, int64_t begin, int64_t end) {
      Strip<T> in, added, out;
      for_strips<T>(0, cols, [&](int64_t first, int64_t count) {
        const C* const b = added.read(bias + first, count);
        for (int64_t r = begin; r < end; ++r) {
          T *const zr = z + r * cols + first, *const yr = y + r * cols + first;
          C* const kept = y == z ? nullptr : in.place(zr);
          values_with_bias<A>(count, in.read(zr, count), b, slope, kept, out.place(yr));
          if (kept != nullptr) in.write(zr, count);
          out.write(yr, count);
        }
      });
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
        Strip<T> in, derivative, out;
        for_strips<T>(begin * cols, end * cols, [&](int64_t first, int64_t count) {
          gradients<A>(count, in.read(grad_y + first, count), derivative.read(saved + first, count), slope,
                       out.place(grad_z + first));
          out.write(grad_z + first, count);
        });
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
      Strip<T> in, derivative, out;
      for_strips<T>(0, cols, [&](int64_t first, int64_t count) {
        double* const total = grad_bias == nullptr ? nullptr : totals.data() + block * cols + first;
        C* const sums = grad_bias == nullptr ? nullptr : groups.data() + block * cols + first;
        for (int64_t r = begin; r < end; ++r) {
          const T* const gr = grad_y + r * cols + first;
          T* const zr = grad_z == nullptr ? nullptr : grad_z + r * cols + first;
          if (identity) {
            if (grad_bias != nullptr) add_to(count, in.read(gr, count), sums);
            if (grad_z != nullptr && grad_z != grad_y) std::copy_n(gr, count, zr);
          } else {
            const C *const g = in.read(gr, count), *const s = derivative.read(saved + r * cols + first, count);
            if (grad_bias != nullptr)
              gradients_and_sums<A>(count, g, s, slope, out.place(zr), sums);
            else
              gradients<A>(count, g, s, slope, out.place(zr));
            out.write(zr, count);
          }
          if (grad_bias != nullptr && (r + 1 == end || (r + 1 - begin) % group_rows == 0))
            simd_for(
                0, count, FASTGAN_BODY(c) {
                  total[c] += sums[c];
                  sums[c] = 0;
                });
        }
      });
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
      Strip<T> in, by, derivative, out, second;
      for_strips<T>(chunk * chunk_size, std::min(n, (chunk + 1) * chunk_size), [&](int64_t first, int64_t count) {
        const C *const value = in.read(u + first, count), *const s = derivative.read(saved + first, count);
        C* const gradient = out.place(grad_grad_y + first);
        if (grad_z2 == nullptr) {
          gradients<A>(count, value, s, slope, gradient);
        } else {
          second_gradients<A>(count, value, by.read(grad_y + first, count), s, slope, gradient,
                              second.place(grad_z2 + first));
          second.write(grad_z2 + first, count);
        }
        out.write(grad_grad_y + first, count);
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
