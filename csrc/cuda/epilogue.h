// What becomes of a finished tile of sums: loops over it four neighbouring columns at a time, with the memory of
// several rows on its way before the first of it is used. Element by element, each waiting for its own memory, the
// epilogue of a product of 64x64 took 15 us of 20 on an H100, and the sums of the splits of k as much again.
#pragma once

#include "adam_parameter.h"
#include "tile.h"

namespace fastgan::cuda {

// Four neighbours in a row of memory.
template <class T>
struct alignas(sizeof(T) == 2 ? 8 : 16) Quad {
  T element[4];
};

template <class C>
struct Values {
  C element[4];
};

template <class T>
__device__ __forceinline__ bool takes_quads(const T* data) {
  return reinterpret_cast<uintptr_t>(data) % alignof(Quad<T>) == 0;
}

// `count` of four elements, at once where `quads`.
template <class T>
__device__ __forceinline__ Values<compute_t<T>> load_values(const T* data, int count, bool quads) {
  Values<compute_t<T>> values;
  if (quads) {
    const Quad<T> quad = *reinterpret_cast<const Quad<T>*>(data);
#pragma unroll
    for (int i = 0; i < 4; ++i) values.element[i] = load(&quad.element[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) values.element[i] = i < count ? load(data + i) : compute_t<T>(0);
  }
  return values;
}

template <class T>
__device__ __forceinline__ void store_values(T* data, int count, bool quads, const Values<compute_t<T>>& values) {
  if (quads) {
    Quad<T> quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) store(&quad.element[i], values.element[i]);
    *reinterpret_cast<Quad<T>*>(data) = quad;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (i < count) store(data + i, values.element[i]);
  }
}

// A square tile of sums in shared memory, the part of a matrix (m, n) from (row0, col0) on, and of its rows those from
// `first` up to `end`. Each thread has four columns of it, the same in all of its rows.
template <class C, int side, int stride>
struct Tile {
  static constexpr int threads_across = side / 4, rows_apart = tile_threads / threads_across;
  static constexpr int own_rows = side / rows_apart;
  static_assert(side % rows_apart == 0 && tile_threads % threads_across == 0, "every thread has as many rows");

  const C* sums;
  int64_t row0, col0, m, n;
  int first = 0, end = side;

  static __device__ __forceinline__ int first_row() { return int(threadIdx.x) / threads_across; }
  static __device__ __forceinline__ int first_col() { return int(threadIdx.x) % threads_across * 4; }

  // How many of this thread's four columns the matrix has.
  __device__ __forceinline__ int count() const {
    const int64_t left = n - (col0 + first_col());
    return left >= 4 ? 4 : left <= 0 ? 0 : int(left);
  }
  // Whether four columns of it lie together in every row, where the matrix's memory does.
  __device__ __forceinline__ bool has_quads() const { return n % 4 == 0; }

  // Calls each(loaded, sums, place) for each of the thread's rows, where loaded is load(place, row), and place is
  // that of the first of four elements in the matrix; in_flight of the loads are under way at a time. The loop over
  // those is unrolled on demand: nine activations in each copy take the compiler a minute.
  template <int in_flight, bool unrolled = true, class Load, class Each>
  __device__ __forceinline__ void for_rows(const Load& load, const Each& each) const {
    static_assert(own_rows % in_flight == 0, "as many rows at a time");
    if (count() == 0) return;
    const auto row_of = [&](int i) { return first + first_row() + i * rows_apart; };
    const auto place_of = [&](int i) { return (row0 + row_of(i)) * n + col0 + first_col(); };
    const auto is_inside = [&](int i) { return row_of(i) < end && row0 + row_of(i) < m; };
    // Doubles take two registers each, and an unrolled loop over them spills.
#pragma unroll(sizeof(C) == 8 || !unrolled ? 1 : own_rows / in_flight)
    for (int begin = 0; begin < own_rows; begin += in_flight) {
      decltype(load(int64_t{}, int64_t{})) loaded[in_flight];
#pragma unroll
      for (int i = 0; i < in_flight; ++i)
        if (is_inside(begin + i)) loaded[i] = load(place_of(begin + i), row0 + row_of(begin + i));
#pragma unroll
      for (int i = 0; i < in_flight; ++i) {
        if (!is_inside(begin + i)) break;
        const C* own = sums + row_of(begin + i) * stride + first_col();
        each(loaded[i], Values<C>{own[0], own[1], own[2], own[3]}, place_of(begin + i));
      }
    }
  }
};

// Asks for what the update of a part of a parameter (m, n) reads: rows [row0, end), `cols` columns from col0 on.
template <int cols, class T>
__device__ __forceinline__ void prefetch_update(const AdamParameter<T>& t, int64_t row0, int64_t end, int64_t col0,
                                                int64_t m, int64_t n) {
  constexpr int line = 128 / int(sizeof(T)), lines = cols / line;
  for (int i = threadIdx.x; i < int(end - row0) * lines; i += tile_threads) {
    const int64_t row = row0 + i / lines, col = col0 + i % lines * line;
    if (row >= m || col >= n) continue;
    const int64_t place = row * n + col;
    prefetch(t.value + place), prefetch(t.exp_avg + place), prefetch(t.exp_avg_sq + place);
    if (t.max_exp_avg_sq != nullptr) prefetch(t.max_exp_avg_sq + place);
    if (t.average != nullptr) prefetch(t.average + place);
  }
}

// What an update of four elements reads.
template <class T>
struct AdamValues {
  Values<T> value, exp_avg, exp_avg_sq, most, average;
};

// Updates the part of a parameter that a tile of its gradient is for.
template <class T, int side, int stride>
__device__ __forceinline__ void update_tile(const Tile<T, side, stride>& tile, const AdamParameter<T>& t,
                                            T average_rate) {
  const bool keeps_most = t.max_exp_avg_sq != nullptr, averages = t.average != nullptr;
  const bool quads = tile.has_quads() && takes_quads(t.value) && takes_quads(t.exp_avg) && takes_quads(t.exp_avg_sq) &&
                     takes_quads(t.max_exp_avg_sq) && takes_quads(t.average);
  const int count = tile.count();
  const AdamStep<T> step = *t.step;
  // A rolled loop: unrolled, an H200 waited for its code two thirds of the kernel's time.
  tile.template for_rows<sizeof(T) == 8 ? 1 : 2, false>(
      [&](int64_t place, int64_t) {
        AdamValues<T> old{};
        old.value = load_values(t.value + place, count, quads);
        old.exp_avg = load_values(t.exp_avg + place, count, quads);
        old.exp_avg_sq = load_values(t.exp_avg_sq + place, count, quads);
        if (keeps_most) old.most = load_values(t.max_exp_avg_sq + place, count, quads);
        if (averages) old.average = load_values(t.average + place, count, quads);
        return old;
      },
      [&](AdamValues<T> now, const Values<T>& gradient, int64_t place) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          adam_update(step, keeps_most, gradient.element[i], now.value.element[i], now.exp_avg.element[i],
                      now.exp_avg_sq.element[i], now.most.element[i]);
          now.average.element[i] = lerp(now.average.element[i], now.value.element[i], average_rate);
        }
        store_values(t.value + place, count, quads, now.value);
        store_values(t.exp_avg + place, count, quads, now.exp_avg);
        store_values(t.exp_avg_sq + place, count, quads, now.exp_avg_sq);
        if (keeps_most) store_values(t.max_exp_avg_sq + place, count, quads, now.most);
        if (averages) store_values(t.average + place, count, quads, now.average);
      });
}

// Stores a tile as it is.
template <class T, class C, int side, int stride>
__device__ __forceinline__ void store_tile(const Tile<C, side, stride>& tile, T* to) {
  const bool quads = tile.has_quads() && takes_quads(to);
  const int count = tile.count();
  tile.template for_rows<1>(
      [](int64_t, int64_t) { return 0; },
      [&](int, const Values<C>& sums, int64_t place) { store_values(to + place, count, quads, sums); });
}

// Adds up what the blocks that shared out k have left, in their order: `splits` copies of a tile, its padding included,
// and of the sums behind it, `size` elements each. The sum takes the place of this block's own.
template <class C, int size>
__device__ __forceinline__ void sum_splits(C* tile, const C* partial, unsigned splits) {
  static_assert(size % 4 == 0, "whole quads");
  constexpr int quads = size / 4, own = (quads + tile_threads - 1) / tile_threads;
  constexpr int at_a_time = sizeof(C) == 8 ? (own + 1) / 2 : own;
#pragma unroll 1
  for (int begin = 0; begin < own; begin += at_a_time) {
    Quad<C> total[at_a_time];
    for (unsigned split = 0; split < splits; ++split) {
      const Quad<C>* const from = reinterpret_cast<const Quad<C>*>(partial + int64_t{split} * size);
      Quad<C> part[at_a_time];
#pragma unroll
      for (int i = 0; i < at_a_time; ++i) {
        const int place = (begin + i) * tile_threads + int(threadIdx.x);
        part[i] = place < quads ? from[place] : Quad<C>{};
      }
#pragma unroll
      for (int i = 0; i < at_a_time; ++i)
#pragma unroll
        for (int q = 0; q < 4; ++q)
          total[i].element[q] = split == 0 ? part[i].element[q] : total[i].element[q] + part[i].element[q];
    }
#pragma unroll
    for (int i = 0; i < at_a_time; ++i) {
      const int place = (begin + i) * tile_threads + int(threadIdx.x);
      if (place < quads) reinterpret_cast<Quad<C>*>(tile)[place] = total[i];
    }
  }
}

// The same where they are a cluster, each of which has its part of the tile's rows to add up: those from `first` up to
// `end`, a thread the elements that are its own in a Tile; and, where `with_sums`, of the sums behind the tile's `side`
// rows likewise. The loads of several rows and blocks are on their way together.
template <class C, int side, int stride>
__device__ __forceinline__ void sum_cluster(C* tile, unsigned splits, int first, int end, bool with_sums) {
  constexpr unsigned at_a_time = sizeof(C) == 8 ? 4 : max_cluster;
  using T = Tile<C, side, stride>;
  struct Place {
    unsigned rank;
    int row;
  };
  const auto next = [&](Place& place) {
    if (++place.rank == splits) place = {0, place.row + T::rows_apart};
  };
  const auto own = [&](const Place& place) { return tile + place.row * stride + T::first_col(); };
  Place loaded{0, first + T::first_row()}, added = loaded;
  Quad<C> total{};
#pragma unroll 1
  while (added.row < end) {
    Quad<C> part[at_a_time];
#pragma unroll
    for (unsigned i = 0; i < at_a_time; ++i) {
      if (loaded.row < end) part[i] = *reinterpret_cast<const Quad<C>*>(peer_shared(own(loaded), loaded.rank));
      next(loaded);
    }
#pragma unroll
    for (unsigned i = 0; i < at_a_time; ++i) {
      if (added.row >= end) break;
#pragma unroll
      for (int q = 0; q < 4; ++q)
        total.element[q] = added.rank == 0 ? part[i].element[q] : total.element[q] + part[i].element[q];
      if (added.rank + 1 == splits) *reinterpret_cast<Quad<C>*>(own(added)) = total;
      next(added);
    }
  }
  const int row = first + int(threadIdx.x);
  if (!with_sums || row >= end) return;
  C* const sum = tile + side * stride + row;
  C all = *peer_shared(sum, 0);
#pragma unroll 4
  for (unsigned rank = 1; rank < splits; ++rank) all += *peer_shared(sum, rank);
  *sum = all;
}

}  // namespace fastgan::cuda
