// The tiled matrix product that every layer kernel is made of: C = A B, a tile of C a block of 128 threads.
//
// The tile's operands come from global to shared memory in steps of 64 bytes along k, four steps in flight (cp.async);
// a thread or warp keeps its part of C in registers. The pieces:
//   Matrix        an operand in global memory, of any size, stride and alignment
//   StagedSource, ResidentSource    where a step's operand is found: copied step by step, or on chip from before
//   Fma, Mma      the arithmetic: exact float or double by FMA; tf32, bf16 and fp16 on tensor cores
//   multiply_tiles    the pipeline
#pragma once

#include <type_traits>

#include "ptx.h"

namespace fastgan::cuda {

constexpr int tile_threads = 128;
constexpr int stages = 4;

// Elements of k a step.
template <class T>
constexpr int step_k = 64 / sizeof(T);

// Along which index of its own an operand's elements are neighbours in memory: k, or its row (m of A, n of B).
enum class Major { k, row };

// An operand with `rows` rows of length k: element (row, i) is data[row * stride + i] for Major::k, and
// data[i * stride + row] for Major::row. aligned: data and stride are multiples of 16 bytes.
template <class T>
struct Matrix {
  const T* data;
  int64_t stride;
  int64_t rows;
  int64_t k;
  bool aligned;
};

template <class T>
__host__ __device__ __forceinline__ Matrix<T> matrix(const T* data, int64_t stride, int64_t rows, int64_t k) {
  const bool aligned = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * sizeof(T) % 16 == 0;
  return {data, stride, rows, k, aligned};
}

// One step of an operand in shared memory. The strides keep the reads below free of bank conflicts: 80 bytes for
// Major::k; for Major::row, rows padded by 32 bytes (float), 16 (16-bit), 16 (double).
template <class T, Major major, int rows>
struct Stage {
  static constexpr int stride = major == Major::k ? step_k<T> + 16 / int(sizeof(T)) : rows + (sizeof(T) == 8 ? 2 : 8);
  static constexpr int size = (major == Major::k ? rows : step_k<T>)*stride;
};

// Starts copying, element by element, rows [row0, row0 + rows) x k [k0, k0 + step_k) of the operand; zeros where it
// ends.
template <class T, Major major, int rows>
__device__ __forceinline__ void copy_elements(T* shared, const Matrix<T>& m, int64_t row0, int64_t k0) {
  constexpr int lines = major == Major::k ? rows : step_k<T>;
  constexpr int line_length = major == Major::k ? step_k<T> : rows;
  constexpr int stride = Stage<T, major, rows>::stride;
  const int64_t line0 = major == Major::k ? row0 : k0, place0 = major == Major::k ? k0 : row0;
  const int64_t line_end = major == Major::k ? m.rows : m.k, place_end = major == Major::k ? m.k : m.rows;
#pragma unroll 1  // seldom taken, within loops that must stay short
  for (int element = threadIdx.x; element < lines * line_length; element += tile_threads) {
    const int line = element / line_length, place = element % line_length;
    const bool inside = line0 + line < line_end && place0 + place < place_end;
    const T* source = inside ? m.data + (line0 + line) * m.stride + place0 + place : m.data;
    T* target = shared + line * stride + place;
    if constexpr (sizeof(T) == 2) {
      *target = inside ? *source : T{0};  // cp.async copies no less than 4 bytes
    } else {
#pragma unroll
      for (int word = 0; word < int(sizeof(T) / 4); ++word)
        cp_async_4(
            reinterpret_cast<uint32_t*>(target) + word,
            inside ? reinterpret_cast<const uint32_t*>(source) + word : reinterpret_cast<const uint32_t*>(m.data),
            inside ? 4 : 0);
    }
  }
}

// The copies of an operand's steps, one after the other along k: where they go is `shared`, stage by stage. A thread
// has the same few pieces of 16 bytes in every step, so that a step costs it little more than the copies themselves.
template <class T, Major major, int rows>
class Copies {
 public:
  __device__ __forceinline__ Copies(T* shared, const Matrix<T>& m, int64_t row0, int64_t k0)
      : shared_(shared), m_(m), row0_(row0), k_(k0) {
    to_ = shared_place(shared + own_line() * Stage<T, major, rows>::stride + own_place());
    const int64_t line0 = major == Major::k ? row0 : k0, place0 = major == Major::k ? k0 : row0;
    source_ = m.data + (line0 + own_line()) * m.stride + place0 + own_place();
    const int64_t left = major == Major::k ? m.rows - row0 - own_line() : m.rows - row0 - own_place();
    left_ = left > rows ? rows : left < 0 ? 0 : int(left);
  }

  __device__ __forceinline__ void next(int stage) {
    if (__builtin_expect(m_.aligned, 1)) {
      const int64_t left_k = m_.k - k_;
      const int k = left_k > step_k<T> ? step_k<T> : int(left_k);  // of this step
#pragma unroll
      for (int i = 0; i < own; ++i) {
        if (pieces % tile_threads != 0 && int(threadIdx.x) + i * tile_threads >= pieces) break;
        const int line = i * lines_apart;  // from the first of one's own
        const int count =
            major == Major::k ? (left_ > line ? most(k - own_place()) : 0) : (k > own_line() + line ? most(left_) : 0);
        cp_async_16(to_ + (stage * Stage<T, major, rows>::size + line * Stage<T, major, rows>::stride) * int(sizeof(T)),
                    count > 0 ? source_ + line * m_.stride : m_.data, count * int(sizeof(T)));
      }
      source_ += major == Major::k ? int64_t{step_k<T>} : step_k<T> * m_.stride;
    } else {
      copy_elements<T, major, rows>(shared_ + stage * Stage<T, major, rows>::size, m_, row0_, k_);
    }
    k_ += step_k<T>;
  }

 private:
  static constexpr int length = 16 / sizeof(T);  // elements of a piece
  static constexpr int pieces_of_line = (major == Major::k ? step_k<T> : rows) / length;
  static constexpr int pieces = rows * step_k<T> / length;
  static constexpr int own = (pieces + tile_threads - 1) / tile_threads, lines_apart = tile_threads / pieces_of_line;
  static_assert(tile_threads % pieces_of_line == 0, "a thread's pieces lie one below the other");

  static __device__ __forceinline__ int own_line() { return int(threadIdx.x) / pieces_of_line; }
  static __device__ __forceinline__ int own_place() { return int(threadIdx.x) % pieces_of_line * length; }
  static __device__ __forceinline__ int most(int count) { return count > length ? length : count < 0 ? 0 : count; }

  T* const shared_;
  SharedPlace to_;  // of the first of one's own pieces, in the first stage
  const Matrix<T>& m_;
  const int64_t row0_;
  int64_t k_;
  const T* source_;  // of the first of one's own pieces
  int left_;         // rows of the operand from there on, within the tile
};

// An operand copied to `shared` (`stages` steps of it) as the product goes along k.
template <class T, Major major_, int rows>
struct StagedSource {
  static constexpr Major major = major_;
  static constexpr int stride = Stage<T, major, rows>::stride;
  static constexpr int shared_elements = stages * Stage<T, major, rows>::size;

  __device__ __forceinline__ Copies<T, major, rows> copies(int64_t k) const { return {shared, operand, row0, k}; }
  __device__ __forceinline__ const T* at(int stage, int64_t) const {
    return shared + stage * Stage<T, major, rows>::size;
  }

  T* shared;
  Matrix<T> operand;
  int64_t row0;
};

// An operand that is on chip already, Major::k; up to the next multiple of step_k its rows end in zeros.
template <class T>
struct ResidentSource {
  static constexpr Major major = Major::k;
  struct NoCopies {
    __device__ __forceinline__ void next(int) const {}
  };

  __device__ __forceinline__ NoCopies copies(int64_t) const { return {}; }
  __device__ __forceinline__ const T* at(int, int64_t k) const { return shared + k; }

  const T* shared;
  int stride;
};

template <class T>
struct alignas(16) Four {
  T element[4];
};

// The arithmetic by FMA, in T itself (float or double): each thread has some rows and columns of the tile.
template <class T_, int rows, int cols, Major a_major, Major b_major>
class Fma {
 public:
  using T = T_;
  using Accumulator = T;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < own_rows; ++i)
#pragma unroll
      for (int j = 0; j < own_cols; ++j) sum_[i][j] = T(0);
  }

  __device__ __forceinline__ void multiply(const T* a, int a_stride, const T* b, int b_stride) {
    const int down = threadIdx.x / threads_across, across = threadIdx.x % threads_across;
#pragma unroll 2  // a longer loop does not fit the first of the caches of instructions
    for (int k = 0; k < step_k<T>; k += 4) {
      T a_part[own_rows][4], b_part[own_cols][4];
      load_part<a_major, own_rows, threads_down>(a_part, a, a_stride, down, k);
      load_part<b_major, own_cols, threads_across>(b_part, b, b_stride, across, k);
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < own_rows; ++i)
#pragma unroll
          for (int j = 0; j < own_cols; ++j) sum_[i][j] += a_part[i][q] * b_part[j][q];
    }
  }

  // Writes the tile to shared memory.
  __device__ __forceinline__ void write(T* c, int stride) const {
    const int down = threadIdx.x / threads_across, across = threadIdx.x % threads_across;
#pragma unroll
    for (int i = 0; i < own_rows; ++i)
#pragma unroll
      for (int j = 0; j < own_cols; ++j)
        c[place<a_major, threads_down>(down, i) * stride + place<b_major, threads_across>(across, j)] = sum_[i][j];
  }

 private:
  static constexpr int threads_down = rows == 16 ? 4 : 8, threads_across = tile_threads / threads_down;
  static constexpr int own_rows = rows / threads_down, own_cols = cols / threads_across;

  // The place in the tile of a thread's i-th row: interleaved with the other threads' where it reads along k, in fours
  // where it reads along rows; so a warp's 16-byte reads fall on different banks.
  template <Major major, int threads>
  static __device__ __forceinline__ int place(int thread, int i) {
    return major == Major::k ? thread + threads * i : i / 4 * (threads * 4) + thread * 4 + i % 4;
  }

  template <Major major, int own, int threads>
  static __device__ __forceinline__ void load_part(T (&part)[own][4], const T* operand, int stride, int thread, int k) {
    if constexpr (major == Major::k) {
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(operand + place<major, threads>(thread, i) * stride + k);
#pragma unroll
        for (int q = 0; q < 4; ++q) part[i][q] = four.element[q];
      }
    } else {
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < own; i += 4) {
          const Four<T> four =
              *reinterpret_cast<const Four<T>*>(operand + (k + q) * stride + place<major, threads>(thread, i));
#pragma unroll
          for (int p = 0; p < 4; ++p) part[i + p][q] = four.element[p];
        }
    }
  }

  T sum_[own_rows][own_cols];
};

// The arithmetic on tensor cores, accumulated in float: of T = float in tf32, or rounded to bfloat16 where `Operand` is
// that, else of T itself. Each warp has 32 columns of the tile and 32 (16) of its rows.
template <class T_, int rows, int cols, Major a_major, Major b_major, class Operand = T_>
class Mma {
 public:
  using T = T_;
  using Accumulator = float;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < m_tiles; ++i)
#pragma unroll
      for (int j = 0; j < n_tiles; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) sum_[i][j][r] = 0;
  }

  __device__ __forceinline__ void multiply(const T* a, int a_stride, const T* b, int b_stride) {
    constexpr int mma_k = sizeof(Operand) == 4 ? 8 : 16;
#pragma unroll
    for (int k = 0; k < step_k<T>; k += mma_k) {
      uint32_t a_part[m_tiles][4], b_part[n_tiles][2];
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) load_a(a_part[i], a, a_stride, first_row() + 16 * i, k);
#pragma unroll
      for (int j = 0; j < n_tiles; j += 2) load_two_b(b_part[j], b_part[j + 1], b, b_stride, first_col() + 8 * j, k);
#pragma unroll
      for (int i = 0; i < m_tiles; ++i)
#pragma unroll
        for (int j = 0; j < n_tiles; ++j) multiply_fragments(sum_[i][j], a_part[i], b_part[j]);
    }
  }

  __device__ __forceinline__ void write(float* c, int stride) const {
#pragma unroll
    for (int i = 0; i < m_tiles; ++i)
#pragma unroll
      for (int j = 0; j < n_tiles; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r)
          c[(first_row() + 16 * i + group() + r / 2 * 8) * stride + first_col() + 8 * j + 2 * t() + r % 2] =
              sum_[i][j][r];
  }

 private:
  struct alignas(8) Two {
    float element[2];
  };

  static constexpr int warps_across = cols / 32, warps_down = tile_threads / 32 / warps_across;
  static constexpr int m_tiles = rows / warps_down / 16, n_tiles = 4;
  static constexpr bool rounds_to_bf16 = std::is_same_v<T, float> && std::is_same_v<Operand, bfloat16>;

  static __device__ __forceinline__ int lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int group() { return lane() / 4; }
  static __device__ __forceinline__ int t() { return lane() % 4; }
  static __device__ __forceinline__ int first_row() { return threadIdx.x / 32 / warps_across * (m_tiles * 16); }
  static __device__ __forceinline__ int first_col() { return threadIdx.x / 32 % warps_across * 32; }

  // float: one by one, rounded to tf32. 16-bit: by ldmatrix, whose lane gives the address of a row of eight: those of
  // the first two 8x8 matrices down the rows and the last two further along k (of B: the other way round).
  template <Major major>
  static __device__ __forceinline__ const T* element(const T* operand, int stride, int row, int k) {
    return major == Major::k ? operand + row * stride + k : operand + k * stride + row;
  }

  // Two neighbours in k of an operand of floats, rounded; k is even.
  template <Major major>
  static __device__ __forceinline__ uint32_t pair(const float* operand, int stride, int row, int k) {
    if constexpr (major == Major::k) {
      const Two two = *reinterpret_cast<const Two*>(operand + row * stride + k);
      return to_bf16_pair(two.element[0], two.element[1]);
    }
    return to_bf16_pair(*element<major>(operand, stride, row, k), *element<major>(operand, stride, row, k + 1));
  }

  static __device__ __forceinline__ void load_a(uint32_t (&part)[4], const T* a, int stride, int row, int k) {
    if constexpr (rounds_to_bf16) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        part[r] = pair<a_major>(a, stride, row + group() + r % 2 * 8, k + 2 * t() + r / 2 * 8);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 4; ++r)
        part[r] = to_tf32(*element<a_major>(a, stride, row + group() + r % 2 * 8, k + t() + r / 2 * 4));
    } else if constexpr (a_major == Major::k) {
      ldmatrix_x4(part, element<a_major>(a, stride, row + lane() % 16, k + lane() / 16 * 8));
    } else {
      ldmatrix_x4_trans(part, element<a_major>(a, stride, row + lane() / 8 % 2 * 8, k + lane() % 8 + lane() / 16 * 8));
    }
  }

  static __device__ __forceinline__ void load_two_b(uint32_t (&first)[2], uint32_t (&second)[2], const T* b, int stride,
                                                    int col, int k) {
    if constexpr (rounds_to_bf16) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        first[r] = pair<b_major>(b, stride, col + group(), k + 2 * t() + r * 8);
        second[r] = pair<b_major>(b, stride, col + 8 + group(), k + 2 * t() + r * 8);
      }
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        first[r] = to_tf32(*element<b_major>(b, stride, col + group(), k + t() + r * 4));
        second[r] = to_tf32(*element<b_major>(b, stride, col + 8 + group(), k + t() + r * 4));
      }
    } else {
      uint32_t four[4];
      if constexpr (b_major == Major::k)
        ldmatrix_x4(four, element<b_major>(b, stride, col + lane() % 8 + lane() / 16 * 8, k + lane() / 8 % 2 * 8));
      else
        ldmatrix_x4_trans(four, element<b_major>(b, stride, col + lane() / 16 * 8, k + lane() % 16));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        first[r] = four[r];
        second[r] = four[2 + r];
      }
    }
  }

  static __device__ __forceinline__ void multiply_fragments(float (&d)[4], const uint32_t (&a)[4],
                                                            const uint32_t (&b)[2]) {
    if constexpr (std::is_same_v<Operand, float>)
      mma_m16n8k8_tf32(d, a, b);
    else if constexpr (std::is_same_v<Operand, bfloat16>)
      mma_m16n8k16_bf16(d, a, b);
    else
      mma_m16n8k16_f16(d, a, b);
  }

  float sum_[m_tiles][n_tiles][4];
};

// Adds A B over k in [k_begin, k_end), which starts at a multiple of step_k, to the arithmetic's sums. on_step(stage,
// k) may read what was staged, of k on. When it returns, all threads are done with the stages.
template <class Arithmetic, class ASource, class BSource, class OnStep>
__device__ __forceinline__ void multiply_tiles(Arithmetic& arithmetic, const ASource& a, const BSource& b,
                                               int64_t k_begin, int64_t k_end, const OnStep& on_step) {
  constexpr int step = step_k<typename Arithmetic::T>;
  auto a_copies = a.copies(k_begin);
  auto b_copies = b.copies(k_begin);
  const auto fetch = [&](int64_t k, int stage) {
    if (k < k_end) {
      a_copies.next(stage);
      b_copies.next(stage);
    }
    cp_async_commit();  // an empty group too, so that the count of groups tells the step
  };
#pragma unroll 1  // the code must be fetched, too
  for (int s = 0; s < stages - 1; ++s) fetch(k_begin + s * step, s);
  unsigned stage = 0;
  for (int64_t k = k_begin; k < k_end; k += step) {
    cp_async_wait<stages - 2>();
    __syncthreads();  // this step is there for all, and all are done with the one before, whose place is taken next
    fetch(k + (stages - 1) * step, int((stage + stages - 1) % stages));
    arithmetic.multiply(a.at(int(stage), k), a.stride, b.at(int(stage), k), b.stride);
    on_step(int(stage), k);
    stage = (stage + 1) % stages;
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace fastgan::cuda
