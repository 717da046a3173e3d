#include "thin_linear.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "linear.h"
#include "parallel.h"
#include "strips.h"

namespace fastgan::cpu {

namespace {

// Rows of a sum over rows that are added one to the other; then they are added as one to the sum of those before, which
// rounds by a share of what it has reached.
constexpr int64_t rows_a_chain = 64;

// Rows that make a part of such a sum, where threads share it.
constexpr int64_t rows_a_part = 4096;

// Elements of the wide matrix cost about a sixteenth of one with an exponential.
int64_t work_of(int64_t rows, int64_t cols) { return rows * cols / 16; }

// Rows a task: about four chunks of elements of the wide matrix, which stay in the first-level cache between passes.
int64_t task_rows(int64_t cols) { return std::max<int64_t>(8, 4 * chunk_size / std::max<int64_t>(1, cols)); }

// f(begin, end) for tasks of rows.
template <class F>
void for_row_tasks(int64_t rows, int64_t cols, const F& f) {
  const int64_t size = task_rows(cols);
  for_chunks((rows + size - 1) / size, work_of(rows, cols),
             [&](int64_t task) { f(task * size, std::min(rows, (task + 1) * size)); });
}

// Memory that is not set to anything.
template <class C>
class Room {
 public:
  explicit Room(int64_t elements) : own_(elements > kept ? new C[elements] : nullptr), at_(own_ ? own_.get() : here_) {}
  C* at() { return at_; }

 private:
  static constexpr int64_t kept = 512;
  alignas(64) C here_[kept];
  const std::unique_ptr<C[]> own_;
  C* const at_;
};

// Rows of a matrix in the type of arithmetic: where they are, or converted into memory of its own.
template <class T>
class Rows {
 public:
  using C = compute_t<T>;
  Rows(int64_t rows, int64_t cols, const T* from, int64_t stride) : room_(is_converted<T> ? rows * cols : 0) {
    if constexpr (is_converted<T>) {
      C* const to = room_.at();
      if (stride == cols) {
        simd_for(0, rows * cols, FASTGAN_BODY(i) { to[i] = load(from + i); });
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          const T* const row = from + r * stride;
          C* const at = to + r * cols;
          simd_for(0, cols, FASTGAN_BODY(c) { at[c] = load(row + c); });
        }
      }
      data = to;
      this->stride = cols;
    } else {
      data = from;
      this->stride = stride;
    }
  }
  const C* data;
  int64_t stride;

 private:
  Room<C> room_;
};

// A thin matrix as (few, cols) with contiguous rows, in the type of arithmetic.
template <class T>
class ThinRows {
 public:
  using C = compute_t<T>;
  ThinRows(int few, int64_t cols, const ThinMatrix<T>& w) : room_(is_there(w) ? 0 : few * cols) {
    if constexpr (std::is_same_v<T, C>)
      if (is_there(w)) {
        data = w.data;
        stride = w.few_stride;
        return;
      }
    C* const to = room_.at();
    for (int i = 0; i < few; ++i) {
      const T* const from = w.data + i * w.few_stride;
      for (int64_t c = 0; c < cols; ++c) to[i * cols + c] = load(from + c * w.col_stride);
    }
    data = to;
    stride = cols;
  }
  const C* data;
  int64_t stride;

 private:
  static bool is_there(const ThinMatrix<T>& w) { return std::is_same_v<T, C> && w.col_stride == 1; }
  Room<C> room_;
};

template <int bytes, class C>
struct VectorType {
  typedef C type __attribute__((vector_size(bytes), aligned(sizeof(C)), may_alias));
  using Bits = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
  typedef Bits mask __attribute__((vector_size(bytes), aligned(sizeof(C)), may_alias));
};

// Vectors are handed on by reference alone: as values they would have the layout of the portable build.

// Zeros where nothing is kept: an infinite or NaN element that is left out must not count.
template <class V, class M>
FASTGAN_INLINE void keep(V& x, const M& kept) {
  x = (V)((M)x & kept);
}

// out[r * few + i] = sum over c of x[r][c] w[i][c], of `rows` successive rows. The order of a sum depends on cols
// alone.
template <int bytes, int few, int rows, class C>
FASTGAN_INLINE void dot_rows(int64_t cols, const C* x, int64_t x_stride, const C* w, int64_t w_stride, C* out) {
  using V = typename VectorType<bytes, C>::type;
  using M = typename VectorType<bytes, C>::mask;
  constexpr int lanes = bytes / sizeof(C);
  if (cols < lanes) {
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < few; ++i) {
        C sum = 0;
        for (int64_t c = 0; c < cols; ++c) sum += x[r * x_stride + c] * w[i * w_stride + c];
        out[r * few + i] = sum;
      }
    return;
  }
  V sum[rows][few] = {};
  int64_t c = 0;
  for (; c + lanes <= cols; c += lanes) {
    V v[few];
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) v[i] = *reinterpret_cast<const V*>(w + i * w_stride + c);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const V u = *reinterpret_cast<const V*>(x + r * x_stride + c);
#pragma GCC unroll 4
      for (int i = 0; i < few; ++i) sum[r][i] += u * v[i];
    }
  }
  if (c < cols) {  // the last elements, with some before them that are left out
    M kept;
    const int64_t left_out = lanes - (cols - c);
#pragma GCC unroll 16
    for (int j = 0; j < lanes; ++j) kept[j] = j < left_out ? 0 : -1;
    c = cols - lanes;
    V v[few];
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) {
      v[i] = *reinterpret_cast<const V*>(w + i * w_stride + c);
      keep(v[i], kept);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      V u = *reinterpret_cast<const V*>(x + r * x_stride + c);
      keep(u, kept);
#pragma GCC unroll 4
      for (int i = 0; i < few; ++i) sum[r][i] += u * v[i];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) {
      C parts[lanes];
      std::memcpy(parts, &sum[r][i], sizeof(parts));
#pragma GCC unroll 4
      for (int half = lanes / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int j = 0; j < half; ++j) parts[j] += parts[j + half];
      out[r * few + i] = parts[0];
    }
}

template <int bytes, int few, class C>
FASTGAN_INLINE void dots(int64_t rows, int64_t cols, const C* x, int64_t x_stride, const C* w, int64_t w_stride,
                         C* out) {
  // Eight sums at once keep both multipliers busy.
  constexpr int at_once = few == 1 ? 8 : few == 2 ? 4 : 2;
  int64_t r = 0;
  for (; r + at_once <= rows; r += at_once)
    dot_rows<bytes, few, at_once>(cols, x + r * x_stride, x_stride, w, w_stride, out + r * few);
  for (; r < rows; ++r) dot_rows<bytes, few, 1>(cols, x + r * x_stride, x_stride, w, w_stride, out + r * few);
}

// The activations that outer takes on while a sum is in registers.
enum class Fused { none, relu, scaled };  // scaled: times the slope where not above zero

template <Fused fused, class V, class C>
FASTGAN_INLINE void fuse(V& z, C slope) {
  if constexpr (fused == Fused::relu) z = z < C(0) ? V{} : z;
  if constexpr (fused == Fused::scaled) z = z > C(0) ? z : z * slope;
}

// y[r][c] = sum over i of s[r][i] w[i][c], + bias[c], of `rows` successive rows.
template <int bytes, int few, int rows, Fused fused, class C>
FASTGAN_INLINE void outer_rows(int64_t cols, const C* s, int64_t s_stride, const C* w, int64_t w_stride, const C* bias,
                               C slope, C* y) {
  using V = typename VectorType<bytes, C>::type;
  constexpr int lanes = bytes / sizeof(C);
  C by[rows][few];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) by[r][i] = s[r * s_stride + i];
  const auto at = [&](int64_t c) __attribute__((always_inline)) {
    V v[few];
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) v[i] = *reinterpret_cast<const V*>(w + i * w_stride + c);
    const V b = bias == nullptr ? V{} : *reinterpret_cast<const V*>(bias + c);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      V z = by[r][0] * v[0];
#pragma GCC unroll 4
      for (int i = 1; i < few; ++i) z += by[r][i] * v[i];
      if (bias != nullptr) z += b;
      fuse<fused>(z, slope);
      *reinterpret_cast<V*>(y + r * cols + c) = z;
    }
  };
  int64_t c = 0;
  for (; c + lanes <= cols; c += lanes) at(c);
  if (c < cols && cols >= lanes) return at(cols - lanes);  // once more in part
  for (; c < cols; ++c)
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      C z = by[r][0] * w[c];
#pragma GCC unroll 4
      for (int i = 1; i < few; ++i) z += by[r][i] * w[i * w_stride + c];
      if (bias != nullptr) z += bias[c];
      if (fused == Fused::relu) z = z < C(0) ? C(0) : z;
      if (fused == Fused::scaled) z = z > C(0) ? z : z * slope;
      y[r * cols + c] = z;
    }
}

template <int bytes, int few, Fused fused, class C>
FASTGAN_INLINE void outer(int64_t rows, int64_t cols, const C* s, int64_t s_stride, const C* w, int64_t w_stride,
                          const C* bias, C slope, C* y) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    outer_rows<bytes, few, 4, fused>(cols, s + r * s_stride, s_stride, w, w_stride, bias, slope, y + r * cols);
  for (; r < rows; ++r)
    outer_rows<bytes, few, 1, fused>(cols, s + r * s_stride, s_stride, w, w_stride, bias, slope, y + r * cols);
}

// total[i * total_stride + c] += sum over the rows of s[r][i] x[r][c], of `vectors` vectors of columns.
template <int bytes, int few, int vectors, class C>
FASTGAN_INLINE void sum_columns(int64_t rows, const C* s, int64_t s_stride, const C* x, int64_t x_stride, C* total,
                                int64_t total_stride) {
  using V = typename VectorType<bytes, C>::type;
  constexpr int lanes = bytes / sizeof(C);
  V all[few][vectors] = {};
  for (int64_t first = 0; first < rows; first += rows_a_chain) {
    const int64_t end = std::min(rows, first + rows_a_chain);
    V sum[few][vectors] = {};
    for (int64_t r = first; r < end; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) {
        const V u = *reinterpret_cast<const V*>(x + r * x_stride + v * lanes);
#pragma GCC unroll 4
        for (int i = 0; i < few; ++i) sum[i][v] += s[r * s_stride + i] * u;
      }
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) all[i][v] += sum[i][v];
  }
#pragma GCC unroll 4
  for (int i = 0; i < few; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) *reinterpret_cast<V*>(total + i * total_stride + v * lanes) = all[i][v];
}

// The columns [begin, end) of a matrix, for which total has rows of total_stride.
template <int bytes, int few, class C>
FASTGAN_INLINE void sums(int64_t rows, int64_t begin, int64_t end, const C* s, int64_t s_stride, const C* x,
                         int64_t x_stride, C* total, int64_t total_stride) {
  constexpr int lanes = bytes / sizeof(C), vectors = few == 1 ? 8 : few == 2 ? 4 : 2;
  int64_t c = begin;
  for (; c + vectors * lanes <= end; c += vectors * lanes)
    sum_columns<bytes, few, vectors>(rows, s, s_stride, x + c, x_stride, total + c, total_stride);
  for (; c + lanes <= end; c += lanes)
    sum_columns<bytes, few, 1>(rows, s, s_stride, x + c, x_stride, total + c, total_stride);
  if (c < end && end - begin >= lanes) {  // the last, some of them once more: the same sums
    c = end - lanes;
    return sum_columns<bytes, few, 1>(rows, s, s_stride, x + c, x_stride, total + c, total_stride);
  }
  for (; c < end; ++c) {
    C all[few] = {};
    for (int64_t first = 0; first < rows; first += rows_a_chain) {
      C sum[few] = {};
      for (int64_t r = first; r < std::min(rows, first + rows_a_chain); ++r)
#pragma GCC unroll 4
        for (int i = 0; i < few; ++i) sum[i] += s[r * s_stride + i] * x[r * x_stride + c];
#pragma GCC unroll 4
      for (int i = 0; i < few; ++i) all[i] += sum[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < few; ++i) total[i * total_stride + c] = all[i];
  }
}

template <int value>
using Int = std::integral_constant<int, value>;

template <class F>
FASTGAN_INLINE void with_few(int few, const F& f) {
  if (few == 1) return f(Int<1>());
  if (few == 2) return f(Int<2>());
  if (few == 3) return f(Int<3>());
  f(Int<4>());
}

// The three, of the instruction set of this processor: functions, which all types with the same arithmetic share.

template <class C>
void all_dots(int few, int64_t rows, int64_t cols, const C* x, int64_t x_stride, const C* w, int64_t w_stride, C* out) {
  with_few(few, [&](auto n) {
    with_vectors(FASTGAN_VECTOR_BODY(bytes) { dots<bytes.value, n.value>(rows, cols, x, x_stride, w, w_stride, out); });
  });
}

template <class C>
void all_outer(int few, Fused fused, int64_t rows, int64_t cols, const C* s, int64_t s_stride, const C* w,
               int64_t w_stride, const C* bias, C slope, C* y) {
  with_few(few, [&](auto n) {
    const auto run = [&](auto is) {
      with_vectors(FASTGAN_VECTOR_BODY(bytes) {
        outer<bytes.value, n.value, decltype(is)::value>(rows, cols, s, s_stride, w, w_stride, bias, slope, y);
      });
    };
    if (fused == Fused::relu)
      run(std::integral_constant<Fused, Fused::relu>());
    else if (fused == Fused::scaled)
      run(std::integral_constant<Fused, Fused::scaled>());
    else
      run(std::integral_constant<Fused, Fused::none>());
  });
}

template <class C>
void all_sums(int few, int64_t rows, int64_t cols, const C* s, int64_t s_stride, const C* x, int64_t x_stride, C* total,
              int64_t total_stride) {
  with_few(few, [&](auto n) {
    with_vectors(FASTGAN_VECTOR_BODY(bytes) {
      sums<bytes.value, n.value>(rows, 0, cols, s, s_stride, x, x_stride, total, total_stride);
    });
  });
}

// Rows of finished sums, (rows, cols) from `begin` on: the bias, the activation, and where they go. `sums` may be z's
// or y's own memory.
template <class T>
void finish(const Context& here, ActivationArguments arguments, int64_t begin, int64_t rows, int64_t cols,
            const compute_t<T>* sums, const T* bias, T* z, T* y) {
  using C = compute_t<T>;
  T* const to = (z != nullptr ? z : y) + begin * cols;
  T* const out = y == nullptr ? to : y + begin * cols;
  for (int64_t r = 0; bias != nullptr && r < rows && cols > 16; ++r) {
    T* const at = to + r * cols;
    const C* const from = sums + r * cols;
    simd_for(0, cols, FASTGAN_BODY(c) { store(at + c, from[c] + load(bias + c)); });
  }
  for (int64_t r = 0; bias != nullptr && r < rows && cols <= 16; ++r)
    for (int64_t c = 0; c < cols; ++c) store(to + r * cols + c, sums[r * cols + c] + load(bias + c));
  if (bias == nullptr && static_cast<const void*>(sums) != to)
    simd_for(0, rows * cols, FASTGAN_BODY(i) { store(to + i, sums[i]); });
  if (arguments.activation != Activation::identity || to != out) {
    const T* const none = nullptr;
    bias_act<T>(here, arguments, 1, rows * cols, to, none, out);
  }
}

}  // namespace

template <class T>
void thin_dots(const Context& here, ActivationArguments arguments, int64_t rows, int64_t cols, int few, const T* x,
               int64_t x_stride, ThinMatrix<T> w, const T* bias, T* z, T* y) {
  using C = compute_t<T>;
  const ThinRows<T> thin(few, cols, w);
  for_row_tasks(rows, cols, [&](int64_t begin, int64_t end) {
    const Rows<T> wide(end - begin, cols, x + begin * x_stride, x_stride);
    Room<C> sums((end - begin) * few);
    all_dots(few, end - begin, cols, wide.data, wide.stride, thin.data, thin.stride, sums.at());
    finish(here, arguments, begin, end - begin, few, sums.at(), bias, z, y);
  });
}

template <class T>
void thin_outer(const Context& here, ActivationArguments arguments, int64_t rows, int64_t cols, int few, const T* s,
                int64_t s_stride, ThinMatrix<T> w, const T* bias, T* z, T* y) {
  using C = compute_t<T>;
  const ThinRows<T> thin(few, cols, w);
  const Rows<T> biases(1, bias == nullptr ? 0 : cols, bias, cols);
  const bool has_z = z != nullptr && z != y;
  const bool scales = arguments.activation == Activation::leaky_relu, cuts = arguments.activation == Activation::relu;
  const bool is_fused = !is_converted<T> && !has_z && y != nullptr && (scales || cuts);
  for_row_tasks(rows, cols, [&](int64_t begin, int64_t end) {
    const Rows<T> by(end - begin, few, s + begin * s_stride, s_stride);
    Room<C> room(is_converted<T> ? (end - begin) * cols : 0);
    C* sums = room.at();
    if constexpr (!is_converted<T>) sums = (has_z || y == nullptr ? z : y) + begin * cols;
    const C* const b = bias == nullptr ? nullptr : biases.data;
    const C slope = C(arguments.negative_slope);
    const Fused fused = !is_fused ? Fused::none : cuts ? Fused::relu : Fused::scaled;
    all_outer(few, fused, end - begin, cols, by.data, by.stride, thin.data, thin.stride, b, slope, sums);
    const T* const none = nullptr;
    if (!is_fused) finish(here, arguments, begin, end - begin, cols, sums, none, z, y);
  });
}

template <class T>
void thin_sums(const Context&, int64_t rows, int64_t cols, int few, const T* s, int64_t s_stride, const T* x,
               int64_t x_stride, bool transposed, T* out) {
  using C = compute_t<T>;
  // Threads share blocks of columns and parts of the rows. Their bounds depend on the size alone.
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(64, (rows + rows_a_part - 1) / rows_a_part));
  const int64_t part_rows = ((rows + parts - 1) / parts + rows_a_chain - 1) / rows_a_chain * rows_a_chain;
  constexpr int64_t most_columns = 512;  // whole vectors, whatever their width
  const int64_t blocks = std::max<int64_t>(1, (cols + most_columns - 1) / most_columns);
  Room<C> totals(parts * few * cols);
  for_chunks(parts * blocks, work_of(rows, cols), [&](int64_t task) {
    const int64_t part = task / blocks, first = std::min(rows, part * part_rows);
    const int64_t last = std::min(rows, first + part_rows);
    const int64_t begin = cols * (task % blocks) / blocks, end = cols * (task % blocks + 1) / blocks;
    C* const total = totals.at() + part * few * cols + begin;
    const auto add = [&](int64_t from, int64_t to, C* at) {
      const Rows<T> by(to - from, few, s + from * s_stride, s_stride);
      const Rows<T> wide(to - from, end - begin, x + from * x_stride + begin, x_stride);
      all_sums(few, to - from, end - begin, by.data, by.stride, wide.data, wide.stride, at, cols);
    };
    if constexpr (std::is_same_v<T, C>) {
      add(first, last, total);
    } else {
      // So few rows that they stay in the first-level cache as floats.
      Room<C> piece(few * cols);
      for (int64_t from = first; from < std::max(first + 1, last); from += rows_a_chain) {
        add(from, std::min(last, from + rows_a_chain), from == first ? total : piece.at());
        for (int i = 0; i < few && from > first; ++i) {
          C* const to = total + i * cols;
          const C* const more = piece.at() + i * cols;
          simd_for(0, end - begin, FASTGAN_BODY(c) { to[c] += more[c]; });
        }
      }
    }
  });
  const C* const all = totals.at();
  for (int i = 0; i < few; ++i)
    for (int64_t c = 0; c < cols; ++c) {
      double sum = all[i * cols + c];
      for (int64_t part = 1; part < parts; ++part) sum += all[(part * few + i) * cols + c];
      store(out + (transposed ? c * few + i : i * cols + c), static_cast<C>(sum));
    }
}

#define FASTGAN_INSTANTIATE(T)                                                                               \
  template void thin_dots<T>(const Context&, ActivationArguments, int64_t, int64_t, int, const T*, int64_t,  \
                             ThinMatrix<T>, const T*, T*, T*);                                               \
  template void thin_outer<T>(const Context&, ActivationArguments, int64_t, int64_t, int, const T*, int64_t, \
                              ThinMatrix<T>, const T*, T*, T*);                                              \
  template void thin_sums<T>(const Context&, int64_t, int64_t, int, const T*, int64_t, const T*, int64_t, bool, T*);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cpu
