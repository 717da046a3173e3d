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

// Starts copying rows [row0, row0 + rows) x k [k0, k0 + step_k) of the operand; zeros where it ends.
template <class T, Major major, int rows>
__device__ __forceinline__ void copy_step(T* shared, const Matrix<T>& m, int64_t row0, int64_t k0) {
  constexpr int lines = major == Major::k ? rows : step_k<T>;
  constexpr int line_length = major == Major::k ? step_k<T> : rows;
  constexpr int stride = Stage<T, major, rows>::stride;
  const int64_t line0 = major == Major::k ? row0 : k0, place0 = major == Major::k ? k0 : row0;
  const int64_t line_end = major == Major::k ? m.rows : m.k, place_end = major == Major::k ? m.k : m.rows;
  const auto in_line = [&](int64_t line, int64_t place, int most) -> int {  // how many elements there are from here
    if (line >= line_end || place >= place_end) return 0;
    return place_end - place < most ? int(place_end - place) : most;
  };
  if (m.aligned) {
    constexpr int length = 16 / sizeof(T), pieces = line_length / length;
    constexpr int all_pieces = lines * pieces;
#pragma unroll
    for (int i = 0; i < (all_pieces + tile_threads - 1) / tile_threads; ++i) {
      const int piece = int(threadIdx.x) + i * tile_threads;
      if (all_pieces % tile_threads != 0 && piece >= all_pieces) break;
      const int line = piece / pieces, place = piece % pieces * length;
      const int count = in_line(line0 + line, place0 + place, length);
      const T* source = count > 0 ? m.data + (line0 + line) * m.stride + place0 + place : m.data;
      cp_async_16(shared + line * stride + place, source, count * int(sizeof(T)));
    }
    return;
  }
  for (int element = threadIdx.x; element < lines * line_length; element += tile_threads) {
    const int line = element / line_length, place = element % line_length;
    const bool inside = in_line(line0 + line, place0 + place, 1) > 0;
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

// An operand copied to `shared` (`stages` steps of it) as the product goes along k.
template <class T, Major major_, int rows>
struct StagedSource {
  static constexpr Major major = major_;
  static constexpr int stride = Stage<T, major, rows>::stride;
  static constexpr int shared_elements = stages * Stage<T, major, rows>::size;

  __device__ __forceinline__ void fetch(int stage, int64_t k) const {
    copy_step<T, major, rows>(shared + stage * Stage<T, major, rows>::size, operand, row0, k);
  }
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

  __device__ __forceinline__ void fetch(int, int64_t) const {}
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
#pragma unroll
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

  // Two neighbours in k of an operand of floats, rounded.
  template <Major major>
  static __device__ __forceinline__ uint32_t pair(const float* operand, int stride, int row, int k) {
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
  const auto fetch = [&](int64_t k, int stage) {
    if (k < k_end) {
      a.fetch(stage, k);
      b.fetch(stage, k);
    }
    cp_async_commit();  // an empty group too, so that the count of groups tells the step
  };
#pragma unroll
  for (int s = 0; s < stages - 1; ++s) fetch(k_begin + s * step, s);
  int stage = 0;
  for (int64_t k = k_begin; k < k_end; k += step) {
    cp_async_wait<stages - 2>();
    __syncthreads();  // this step is there for all, and all are done with the one before, whose place is taken next
    fetch(k + (stages - 1) * step, (stage + stages - 1) % stages);
    arithmetic.multiply(a.at(stage, k), a.stride, b.at(stage, k), b.stride);
    on_step(stage, k);
    stage = (stage + 1) % stages;
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace fastgan::cuda
