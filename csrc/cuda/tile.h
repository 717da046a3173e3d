// The tiled matrix product that every layer kernel is made of: C = A B, a tile of C a block of 128 threads.
//
// The tile's operands come from global to shared memory in steps along k, several in flight (cp.async); a thread or
// warp keeps its part of C in registers. The pieces:
//   Matrix        an operand in global memory, of any size, stride and alignment
//   Padded, Swizzled    how its steps lie in shared memory
//   StagedSource, ResidentSource    where a step's operand is found: copied step by step, or on chip from before
//   Fma, Mma      the arithmetic: exact float or double by FMA; tf32, bf16 and fp16 on tensor cores
//   multiply_tiles    the pipeline
#pragma once

#include <type_traits>

#include "ptx.h"

namespace fastgan::cuda {

constexpr int tile_threads = 128;

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

// How the steps of an operand lie in shared memory: `stages` of them, `step` elements of k each, in lines along its
// major index; place() is where an element of a line is. Both keep the reads below free of bank conflicts.
//
// Steps of 64 bytes, with the ends of lines padded: by 16 bytes for Major::k; for Major::row by 32 (float) or 16.
template <class T_, Major major_, int rows_>
struct Padded {
  using T = T_;
  static constexpr Major major = major_;
  static constexpr int rows = rows_, stages = 4, step = 64 / int(sizeof(T));
  static constexpr bool moves_pieces = false;
  static constexpr int stride = major == Major::k ? step + 16 / int(sizeof(T)) : rows + (sizeof(T) == 8 ? 2 : 8);
  static constexpr int size = (major == Major::k ? rows : step) * stride;

  static __device__ __forceinline__ int place(int line, int element) { return line * stride + element; }
};

// Steps of 128 bytes, so that a line of Major::k is a line of the caches. On an H200 a copy of 32 threads took 31 turns
// at shared memory where the steps were of 64 bytes and padded, 18 where lines were whole, and the copies' turns were
// half of what a product of floats waited for. Lines of 128 bytes have their pieces of 16 at places that differ from
// line to line; longer ones, and those of doubles, of which a read takes two pieces, are padded as above, but for lines
// of floats along rows where `moves_rows`: an arithmetic that reads them one by one says which is faster.
template <class T_, Major major_, int rows_, bool moves_rows = false>
struct Swizzled {
  using T = T_;
  static constexpr Major major = major_;
  static constexpr int rows = rows_, stages = 3, step = 128 / int(sizeof(T));
  static constexpr int length = major == Major::k ? step : rows;
  static constexpr bool moves_pieces =
      sizeof(T) < 8 && (length * sizeof(T) == 128 || (moves_rows && length * sizeof(T) == 256));
  static constexpr int stride = length + (moves_pieces ? 0 : sizeof(T) == 8 ? 2 : 8);
  static constexpr int size = (major == Major::k ? rows : step) * stride;

  static __device__ __forceinline__ int place(int line, int element) {
    constexpr int piece = 16 / int(sizeof(T));
    if constexpr (!moves_pieces) return line * stride + element;
    // Eight lines have eight places for a piece, and four neighbours among them places for two pieces each; so have, of
    // longer lines, four that are neighbours, and four with one between each.
    const int key = length * sizeof(T) == 128 ? line % 4 * 2 + line / 4 % 2 : (line ^ line / 4 % 2) % 4 * 2;
    return line * stride + (element / piece ^ key) * piece + element % piece;
  }
};

// Starts copying, element by element, rows [row0, row0 + rows) x k [k0, k0 + step) of the operand; zeros where it ends.
template <class Layout, class T>
__device__ __forceinline__ void copy_elements(T* shared, const Matrix<T>& m, int64_t row0, int64_t k0) {
  constexpr Major major = Layout::major;
  constexpr int lines = major == Major::k ? Layout::rows : Layout::step;
  constexpr int line_length = major == Major::k ? Layout::step : Layout::rows;
  const int64_t line0 = major == Major::k ? row0 : k0, place0 = major == Major::k ? k0 : row0;
  const int64_t line_end = major == Major::k ? m.rows : m.k, place_end = major == Major::k ? m.k : m.rows;
#pragma unroll 1  // seldom taken, within loops that must stay short
  for (int element = threadIdx.x; element < lines * line_length; element += tile_threads) {
    const int line = element / line_length, place = element % line_length;
    const bool inside = line0 + line < line_end && place0 + place < place_end;
    const T* source = inside ? m.data + (line0 + line) * m.stride + place0 + place : m.data;
    T* target = shared + Layout::place(line, place);
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
template <class Layout>
class Copies {
  using T = typename Layout::T;
  static constexpr Major major = Layout::major;
  static constexpr int rows = Layout::rows, step = Layout::step;

 public:
  __device__ __forceinline__ Copies(T* shared, const Matrix<T>& m, int64_t row0, int64_t k0)
      : shared_(shared), m_(m), row0_(row0), k_(k0) {
    to_ = shared_place(shared + Layout::place(own_line(), own_place()));
    const int64_t line0 = major == Major::k ? row0 : k0, place0 = major == Major::k ? k0 : row0;
    source_ = m.data + (line0 + own_line()) * m.stride + place0 + own_place();
    const int64_t left = major == Major::k ? m.rows - row0 - own_line() : m.rows - row0 - own_place();
    left_ = left > rows ? rows : left < 0 ? 0 : int(left);
    is_whole_ = m.aligned && m.rows - row0 >= rows;
  }

  __device__ __forceinline__ void next(int stage) {
    const int64_t left_k = m_.k - k_;
    if (is_whole_ && left_k >= step) {
      const T* from = source_;
#pragma unroll
      for (int i = 0; i < own; ++i) {
        if (pieces % tile_threads != 0 && int(threadIdx.x) + i * tile_threads >= pieces) break;
        cp_async_16(to_ + (stage * Layout::size + i * lines_apart * Layout::stride) * int(sizeof(T)), from);
        from += lines_apart * m_.stride;
      }
    } else if (m_.aligned) {
      const int k = left_k > step ? step : int(left_k);  // of this step
#pragma unroll
      for (int i = 0; i < own; ++i) {
        if (pieces % tile_threads != 0 && int(threadIdx.x) + i * tile_threads >= pieces) break;
        const int line = i * lines_apart;  // from the first of one's own
        const int count =
            major == Major::k ? (left_ > line ? most(k - own_place()) : 0) : (k > own_line() + line ? most(left_) : 0);
        cp_async_16(to_ + (stage * Layout::size + line * Layout::stride) * int(sizeof(T)),
                    count > 0 ? source_ + line * m_.stride : m_.data, count * int(sizeof(T)));
      }
    } else {
      copy_elements<Layout>(shared_ + stage * Layout::size, m_, row0_, k_);
    }
    source_ += major == Major::k ? int64_t{step} : step * m_.stride;
    k_ += step;
  }

 private:
  static constexpr int length = 16 / sizeof(T);  // elements of a piece
  static constexpr int pieces_of_line = (major == Major::k ? step : rows) / length;
  static constexpr int pieces = rows * step / length;
  static constexpr int own = (pieces + tile_threads - 1) / tile_threads, lines_apart = tile_threads / pieces_of_line;
  static_assert(tile_threads % pieces_of_line == 0, "a thread's pieces lie one below the other");
  static_assert(!Layout::moves_pieces || lines_apart % 8 == 0, "at the same places of their lines");

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
  bool is_whole_;    // all of the tile's rows are there, and its pieces aligned
};

// A step of an operand in shared memory: where its element (row0 + row, k) is, k from the step's first on. row0 is a
// multiple of eight where pieces have moved: what depends on the thread is in `row`, so that it is found once.
template <class Layout>
struct StagedStep {
  const typename Layout::T* shared;

  __device__ __forceinline__ const typename Layout::T* operator()(int row0, int row, int k) const {
    return shared +
           (Layout::major == Major::k ? row0 * Layout::stride + Layout::place(row, k) : Layout::place(k, row0 + row));
  }
};
template <class T>
struct ResidentStep {
  const T* shared;
  int stride;

  __device__ __forceinline__ const T* operator()(int row0, int row, int k) const {
    return shared + (row0 + row) * stride + k;
  }
};

// An operand copied to `shared` (`stages` steps of it) as the product goes along k.
template <class Layout_>
struct StagedSource {
  using Layout = Layout_;
  using T = typename Layout::T;
  static constexpr int shared_elements = Layout::stages * Layout::size;

  __device__ __forceinline__ Copies<Layout> copies(int64_t k) const { return {shared, operand, row0, k}; }
  __device__ __forceinline__ StagedStep<Layout> at(int stage, int64_t) const { return {shared + stage * Layout::size}; }

  T* shared;
  Matrix<T> operand;
  int64_t row0;
};

// An operand that is on chip already, Major::k; up to the next multiple of a step its rows end in zeros.
template <class T>
struct ResidentSource {
  struct NoCopies {
    __device__ __forceinline__ void next(int) const {}
  };

  __device__ __forceinline__ NoCopies copies(int64_t) const { return {}; }
  __device__ __forceinline__ ResidentStep<T> at(int, int64_t k) const { return {shared + k, stride}; }

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
  static constexpr bool reads_one_by_one = false;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < own_rows; ++i)
#pragma unroll
      for (int j = 0; j < own_cols; ++j) sum_[i][j] = T(0);
  }

  template <int step, class A, class B>
  __device__ __forceinline__ void multiply(const A& a, const B& b) {
#pragma unroll 2  // a longer loop does not fit the first of the caches of instructions
    for (int k = 0; k < step; k += 4) {
      T a_part[own_rows][4], b_part[own_cols][4];
      load_part<a_major, own_rows, threads_down>(a_part, a, down(), k);
      load_part<b_major, own_cols, threads_across>(b_part, b, across(), k);
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < own_rows; ++i)
#pragma unroll
          for (int j = 0; j < own_cols; ++j) sum_[i][j] += a_part[i][q] * b_part[j][q];
    }
  }

  // Writes the tile to shared memory.
  template <int stride>
  __device__ __forceinline__ void write(T* c) const {
#pragma unroll
    for (int i = 0; i < own_rows; ++i)
#pragma unroll
      for (int j = 0; j < own_cols; ++j)
        c[place<a_major, threads_down>(down(), i) * stride + place<b_major, threads_across>(across(), j)] = sum_[i][j];
  }

 private:
  static constexpr int threads_down = rows == 16 ? 4 : 8, threads_across = tile_threads / threads_down;
  static constexpr int own_rows = rows / threads_down, own_cols = cols / threads_across;

  static __device__ __forceinline__ int down() { return int(threadIdx.x) / threads_across; }
  static __device__ __forceinline__ int across() { return int(threadIdx.x) % threads_across; }

  // The place in the tile of a thread's i-th row: interleaved with the other threads' where it reads along k, in fours
  // where it reads along rows; so a warp's 16-byte reads fall on different banks.
  template <Major major, int threads>
  static __device__ __forceinline__ int place(int thread, int i) {
    return major == Major::k ? thread + threads * i : i / 4 * (threads * 4) + thread * 4 + i % 4;
  }

  template <Major major, int own, int threads, class Step>
  static __device__ __forceinline__ void load_part(T (&part)[own][4], const Step& operand, int thread, int k) {
    if constexpr (major == Major::k) {
#pragma unroll
      for (int i = 0; i < own; ++i) {
        const Four<T> four = *reinterpret_cast<const Four<T>*>(operand(threads * i, thread, k));
#pragma unroll
        for (int q = 0; q < 4; ++q) part[i][q] = four.element[q];
      }
    } else {
#pragma unroll
      for (int q = 0; q < 4; ++q)
#pragma unroll
        for (int i = 0; i < own; i += 4) {
          const Four<T> four =
              *reinterpret_cast<const Four<T>*>(operand(place<major, threads>(0, i), thread * 4, k + q));
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
  // Pairs of neighbours in k, where they are none in memory. Of tf32 an H200 was slower with pieces moved.
  static constexpr bool reads_one_by_one = std::is_same_v<T, float> && std::is_same_v<Operand, bfloat16>;

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < m_tiles; ++i)
#pragma unroll
      for (int j = 0; j < n_tiles; ++j)
#pragma unroll
        for (int r = 0; r < 4; ++r) sum_[i][j][r] = 0;
  }

  template <int step, class A, class B>
  __device__ __forceinline__ void multiply(const A& a, const B& b) {
    constexpr int mma_k = sizeof(Operand) == 4 ? 8 : 16;
#pragma unroll
    for (int k = 0; k < step; k += mma_k) {
      uint32_t a_part[m_tiles][4], b_part[n_tiles][2];
#pragma unroll
      for (int i = 0; i < m_tiles; ++i) load_a(a_part[i], a, first_row() + 16 * i, k);
#pragma unroll
      for (int j = 0; j < n_tiles; j += 2) load_two_b(b_part[j], b_part[j + 1], b, first_col() + 8 * j, k);
#pragma unroll
      for (int i = 0; i < m_tiles; ++i)
#pragma unroll
        for (int j = 0; j < n_tiles; ++j) multiply_fragments(sum_[i][j], a_part[i], b_part[j]);
    }
  }

  template <int stride>
  __device__ __forceinline__ void write(float* c) const {
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

  // Two neighbours in k of an operand of floats, rounded; k is even.
  template <Major major, class Step>
  static __device__ __forceinline__ uint32_t pair(const Step& operand, int row0, int row, int k) {
    if constexpr (major == Major::k) {
      const Two two = *reinterpret_cast<const Two*>(operand(row0, row, k));
      return to_bf16_pair(two.element[0], two.element[1]);
    }
    return to_bf16_pair(*operand(row0, row, k), *operand(row0, row, k + 1));
  }

  template <class A>
  static __device__ __forceinline__ void load_a(uint32_t (&part)[4], const A& a, int row, int k) {
    if constexpr (rounds_to_bf16) {
#pragma unroll
      for (int r = 0; r < 4; ++r) part[r] = pair<a_major>(a, row + r % 2 * 8, group(), k + 2 * t() + r / 2 * 8);
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 4; ++r) part[r] = to_tf32(*a(row + r % 2 * 8, group(), k + t() + r / 2 * 4));
    } else if constexpr (a_major == Major::k) {
      ldmatrix_x4(part, a(row, lane() % 16, k + lane() / 16 * 8));
    } else {
      ldmatrix_x4_trans(part, a(row, lane() / 8 % 2 * 8, k + lane() % 8 + lane() / 16 * 8));
    }
  }

  template <class B>
  static __device__ __forceinline__ void load_two_b(uint32_t (&first)[2], uint32_t (&second)[2], const B& b, int col,
                                                    int k) {
    if constexpr (rounds_to_bf16) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        first[r] = pair<b_major>(b, col, group(), k + 2 * t() + r * 8);
        second[r] = pair<b_major>(b, col + 8, group(), k + 2 * t() + r * 8);
      }
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        first[r] = to_tf32(*b(col, group(), k + t() + r * 4));
        second[r] = to_tf32(*b(col + 8, group(), k + t() + r * 4));
      }
    } else {
      uint32_t four[4];
      if constexpr (b_major == Major::k)
        ldmatrix_x4(four, b(col, lane() % 8 + lane() / 16 * 8, k + lane() / 8 % 2 * 8));
      else
        ldmatrix_x4_trans(four, b(col, lane() / 16 * 8, k + lane() % 16));
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

// Adds A B over k in [k_begin, k_end), which starts at a multiple of a step, to the arithmetic's sums. on_step(stage,
// k) may read what was staged, of k on. When it returns, all threads are done with the stages.
template <class Arithmetic, class ASource, class BSource, class OnStep>
__device__ __forceinline__ void multiply_tiles(Arithmetic& arithmetic, const ASource& a, const BSource& b,
                                               int64_t k_begin, int64_t k_end, const OnStep& on_step) {
  constexpr int step = BSource::Layout::step, stages = BSource::Layout::stages;
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
    arithmetic.template multiply<step>(a.at(int(stage), k), b.at(int(stage), k));
    on_step(int(stage), k);
    stage = (stage + 1) % stages;
  }
  cp_async_wait<0>();
  __syncthreads();
}

}  // namespace fastgan::cuda
