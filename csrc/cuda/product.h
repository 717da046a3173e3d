// The kernel of a layer's products, each a tile of 64x64 a block, and where that makes too few blocks, k shared out
// among several: a cluster, whose blocks each finish some rows of the tile, or, of more blocks or where there are no
// clusters, the last of them all of it. What becomes of a finished tile is its `Pass`. For linear*.cu.
#pragma once

#include <algorithm>
#include <type_traits>

#include "epilogue.h"
#include "linear.h"
#include "reduce.h"

namespace fastgan::cuda {

namespace {

constexpr int tile_size = 64;

enum class Pass { forward, input_gradient, weight_gradient, weight_update, tangent, added_gradient };

template <class T>
struct Product {
  Matrix<T> a, b;
  int64_t k_of_split;  // a multiple of a step
  int64_t tiles_across;
  ActivationArguments activation;
  const T* bias;   // forward
  const T* saved;  // input gradient
  T* first;        // z, grad_x or null
  T* second;       // y, grad_z_before, grad_weight or null
  T* grad_bias;    // weight gradient and update, or null
  const T* added;  // added gradient: at the places [added_begin, added_end)
  int64_t added_begin, added_end;
  const T* row_weight;                      // tangent; weight update, or null
  T *mixed, *curved, *sum;                  // tangent, or null each
  AdamParameter<T> adam_weight, adam_bias;  // weight update
  compute_t<T> average_rate;
  bool bias_cancels;
  bool clustered;  // are the splits of a tile
  void* partial;   // room for the sums of each split of each tile
  unsigned* counters;
};

template <class Arithmetic>
struct TileLayout {
  using C = typename Arithmetic::Accumulator;
  static constexpr int stride = tile_size + (sizeof(C) == 4 ? 8 : 2);
  static constexpr int sums = tile_size * stride;  // the tile; then, of a weight gradient, a bias sum a row
  static constexpr int size = sums + tile_size;
};

// Whether the column sums of grad_z are wanted too.
template <Pass pass, class T>
__host__ __device__ __forceinline__ bool has_bias_sum(const Product<T>& p) {
  if (pass == Pass::weight_update) return p.adam_bias.is_updated();
  return pass == Pass::weight_gradient && p.grad_bias != nullptr;
}

// What a tangent reads for four elements beside their sums.
template <class C>
struct TangentValues {
  Values<C> saved, other;  // other: y, the gradient by y, or what is added to
  C row_weight;
};

// One of p.mixed, p.curved and p.sum is there, or none.
template <class T, class Whole>
__device__ __forceinline__ void tangent_tile(const Whole& tile, const Product<T>& p) {
  using C = compute_t<T>;
  const int count = tile.count();
  T* const other = p.mixed != nullptr ? p.mixed : p.curved != nullptr ? p.curved : p.sum;
  const bool quads = tile.has_quads() && takes_quads(p.second) && takes_quads(p.saved) && takes_quads(other);
  const bool mixes = p.mixed != nullptr, curves = p.curved != nullptr;
  with_activation(p.activation.activation, [&](auto act) {
    using A = decltype(act);
    const C slope = C(p.activation.negative_slope);
    tile.template for_rows<2, false>(
        [&](int64_t place, int64_t row) {
          TangentValues<C> loaded{};
          loaded.saved = load_values(p.saved + place, count, quads);
          if (other != nullptr) loaded.other = load_values(other + place, count, quads);
          if (mixes) loaded.row_weight = load(p.row_weight + row);
          return loaded;
        },
        [&](const TangentValues<C>& loaded, const Values<C>& u, int64_t place) {
          Values<C> t, second = loaded.other;
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const C saved = loaded.saved.element[i];
            t.element[i] = gradient<A>(u.element[i], saved, slope);
            if (mixes)
              second.element[i] = loaded.row_weight * second.element[i] + t.element[i];
            else if (curves)
              second.element[i] *= A::dd(saved, slope) * u.element[i];
            else
              second.element[i] += A::dd(saved, slope) * u.element[i];
          }
          store_values(p.second + place, count, quads, t);
          if (other != nullptr) store_values(other + place, count, quads, second);
        });
  });
}

// As the input gradient, and more added to some rows.
template <class T, class Whole>
__device__ __forceinline__ void added_tile(const Whole& tile, const Product<T>& p) {
  using C = compute_t<T>;
  const int count = tile.count();
  const bool quads = tile.has_quads() && takes_quads(p.second) && takes_quads(p.saved) && takes_quads(p.added);
  with_activation(p.activation.activation, [&](auto act) {
    using A = decltype(act);
    const C slope = C(p.activation.negative_slope);
    tile.template for_rows<2, false>(
        [&](int64_t place, int64_t) {
          TangentValues<C> loaded{};
          loaded.saved = load_values(p.saved + place, count, quads);
          if (place >= p.added_begin && place < p.added_end)
            loaded.other = load_values(p.added + (place - p.added_begin), count, quads);
          return loaded;
        },
        [&](const TangentValues<C>& loaded, Values<C> sums, int64_t place) {
#pragma unroll
          for (int i = 0; i < 4; ++i)
            sums.element[i] = gradient<A>(sums.element[i], loaded.saved.element[i], slope) + loaded.other.element[i];
          store_values(p.second + place, count, quads, sums);
        });
  });
}

// What becomes of a tile of the product.
template <Pass pass, class T, class Whole>
__device__ __forceinline__ void epilogue(const Product<T>& p, const Whole& tile) {
  using C = compute_t<T>;
  const int count = tile.count();
  const bool quads = tile.has_quads() && takes_quads(p.first) && takes_quads(p.second) && takes_quads(p.saved);
  if constexpr (pass == Pass::weight_gradient) {
    store_tile(tile, p.second);
  } else if constexpr (pass == Pass::weight_update) {
    if (p.second != nullptr)
      store_tile(tile, p.second);
    else
      update_tile(tile, p.adam_weight, p.average_rate);
  } else if constexpr (pass == Pass::tangent) {
    tangent_tile(tile, p);
  } else if constexpr (pass == Pass::added_gradient) {
    added_tile(tile, p);
  } else if constexpr (pass == Pass::forward) {
    const Values<C> bias =
        p.bias == nullptr ? Values<C>{} : load_values(p.bias + tile.col0 + tile.first_col(), count, false);
    with_activation(p.activation.activation, [&](auto act) {
      using A = decltype(act);
      const C slope = C(p.activation.negative_slope);
      tile.template for_rows<1, false>([](int64_t, int64_t) { return 0; },
                                       [&](int, Values<C> sums, int64_t place) {
                                         Values<C> y;
#pragma unroll
                                         for (int i = 0; i < 4; ++i) {
                                           if (p.bias != nullptr) sums.element[i] += bias.element[i];
                                           y.element[i] = A::value(sums.element[i], slope);
                                         }
                                         if (p.first != nullptr) store_values(p.first + place, count, quads, sums);
                                         store_values(p.second + place, count, quads, y);
                                       });
    });
  } else {
    static_assert(pass == Pass::input_gradient);
    with_activation(p.activation.activation, [&](auto act) {
      using A = decltype(act);
      const C slope = C(p.activation.negative_slope);
      tile.template for_rows<2, false>(
          [&](int64_t place, int64_t) {
            return p.second == nullptr ? Values<C>{} : load_values(p.saved + place, count, quads);
          },
          [&](const Values<C>& saved, Values<C> sums, int64_t place) {
            if (p.first != nullptr) store_values(p.first + place, count, quads, sums);
            if (p.second == nullptr) return;
#pragma unroll
            for (int i = 0; i < 4; ++i) sums.element[i] = gradient<A>(sums.element[i], saved.element[i], slope);
            store_values(p.second + place, count, quads, sums);
          });
    });
  }
}

// The gradients of a bias from `row0` on, or the update by them, from their sums: those from `first` up to `end`.
template <Pass pass, class T, class C>
__device__ __forceinline__ void finish_bias(const Product<T>& p, const C* sums, int64_t row0, int first, int end) {
  const int own = first + int(threadIdx.x);
  const int64_t row = row0 + own;
  if (own >= end || row >= p.a.rows) return;
  const C sum = sums[own] * C(p.bias_cancels ? 0 : 1);  // NaN stays NaN
  if constexpr (pass == Pass::weight_update) {
    if (p.grad_bias == nullptr) return update(p.adam_bias, *p.adam_bias.step, row, sum, p.average_rate);
  }
  store(p.grad_bias + row, sum);
}

template <class Arithmetic, Major a_major, Major b_major, Pass pass>
__global__ void __launch_bounds__(tile_threads, 2) product_kernel(Product<typename Arithmetic::T> p) {
  using T = typename Arithmetic::T;
  using Layout = TileLayout<Arithmetic>;
  using C = typename Layout::C;
  using A = StagedSource<Swizzled<T, a_major, tile_size, Arithmetic::reads_one_by_one>>;
  using B = StagedSource<Swizzled<T, b_major, tile_size, Arithmetic::reads_one_by_one>>;
  T* const shared = reinterpret_cast<T*>(dynamic_shared());
  C* const tile = reinterpret_cast<C*>(dynamic_shared());  // takes the stages' place

  wait_for_launch_before();
  const int64_t row0 = blockIdx.x / p.tiles_across * tile_size, col0 = blockIdx.x % p.tiles_across * tile_size;
  const int64_t k_begin = blockIdx.y * p.k_of_split;
  const int64_t k_end = k_begin + p.k_of_split < p.a.k ? k_begin + p.k_of_split : p.a.k;
  int first = 0, end = tile_size;  // rows of the tile that are this block's to finish
  if (p.clustered) {
    const int rows = (tile_size + int(gridDim.y) - 1) / int(gridDim.y);
    first = int(blockIdx.y) * rows;
    end = first + rows < tile_size ? first + rows : tile_size;
  }
  if constexpr (pass == Pass::weight_update) {
    if (p.second == nullptr && p.b.rows > 0 && (p.clustered || gridDim.y == 1))
      prefetch_update<tile_size>(p.adam_weight, row0 + first, row0 + end, col0, p.a.rows, p.b.rows);
  }
  Arithmetic arithmetic;
  arithmetic.clear();
  const A a{shared, p.a, row0};
  const B b{shared + A::shared_elements, p.b, col0};
  // The bias gradient is the sum of grad_z, this product's A, along k: taken from shared memory as it passes.
  const bool sums_bias = has_bias_sum<pass>(p) && col0 == 0;
  C bias_sum = 0;
  multiply_tiles(arithmetic, a, b, k_begin, k_end, [&](int stage, int64_t first) {
    if (!sums_bias || threadIdx.x >= tile_size) return;
    constexpr int length = A::Layout::step;
    const auto step = a.at(stage, 0);
    if constexpr (pass == Pass::weight_update) {
      if (p.row_weight != nullptr) {
        for (int k = 0; k < length && first + k < p.a.k; ++k)
          bias_sum += load(step(0, int(threadIdx.x), k)) * load(p.row_weight + first + k);
        return;
      }
    }
#pragma unroll 8
    for (int k = 0; k < length; ++k) bias_sum += load(step(0, int(threadIdx.x), k));
  });
  let_next_launch_begin();  // not before: its blocks would wait where this one's are to run
  arithmetic.template write<Layout::stride>(tile);
  if (threadIdx.x < tile_size) tile[Layout::sums + threadIdx.x] = bias_sum;
  __syncthreads();

  if (p.clustered) {
    cluster_barrier();
    sum_cluster<C, tile_size, Layout::stride>(tile, gridDim.y, first, end, sums_bias);
    cluster_arrive();  // what the others have is read
    __syncthreads();   // a bias's sum is another thread's
  } else if (gridDim.y > 1) {
    C* const sums = static_cast<C*>(p.partial) + int64_t{blockIdx.x} * gridDim.y * Layout::size;
    for (int i = threadIdx.x; i < Layout::size / 4; i += tile_threads)
      reinterpret_cast<Quad<C>*>(sums + int64_t{blockIdx.y} * Layout::size)[i] =
          reinterpret_cast<const Quad<C>*>(tile)[i];
    if (!is_last_block(p.counters + blockIdx.x, gridDim.y)) return;
    sum_splits<C, Layout::size>(tile, sums, gridDim.y);
    __syncthreads();
  }
  if (p.b.rows > 0)
    epilogue<pass>(p, Tile<C, tile_size, Layout::stride>{tile, row0, col0, p.a.rows, p.b.rows, first, end});
  if (sums_bias) finish_bias<pass>(p, tile + Layout::sums, row0, first, end);
  if (p.clustered) cluster_wait();  // the others have read what is here
}

constexpr ProductRole role_of(Pass pass) {
  switch (pass) {
    case Pass::forward:
    case Pass::tangent:
      return ProductRole::forward;
    case Pass::input_gradient:
    case Pass::added_gradient:
      return ProductRole::input_gradient;
    case Pass::weight_gradient:
    case Pass::weight_update:
      break;
  }
  return ProductRole::weight_gradient;
}

// In how many parts k is shared out: as fill the multiprocessors, each of at least two steps, or one where they are a
// cluster, of a power of two, which is what the groups of multiprocessors hold without gaps; or as the context says, as
// long as each has a step and their sums are no more than 70 MB of scratch memory.
int64_t splits_of(const Context& context, const ProductShape& shape, int64_t tiles, int64_t steps, int cluster) {
  if (tiles > Context::counter_count) return 1;
  const int64_t most = std::max<int64_t>(1, std::min(steps, Context::counter_count / tiles));
  if (const int64_t chosen = context.splits(shape); chosen > 0) return std::min(chosen, most);
  const int64_t fill = context.multiprocessors / tiles;
  if (cluster == 1) return std::clamp<int64_t>(std::min(fill, steps / 2), 1, 16);
  int64_t splits = 1;
  while (splits * 2 <= std::min<int64_t>({fill, steps, cluster})) splits *= 2;
  return splits;
}

template <class Arithmetic, Major a_major, Major b_major, Pass pass>
void run(const Context& context, Product<typename Arithmetic::T> p) {
  using T = typename Arithmetic::T;
  using Layout = TileLayout<Arithmetic>;
  using A = Swizzled<T, a_major, tile_size, Arithmetic::reads_one_by_one>;
  using B = Swizzled<T, b_major, tile_size, Arithmetic::reads_one_by_one>;
  static_assert(A::step == B::step && A::stages == B::stages, "the operands go along k together");
  const auto up = [](int64_t n, int64_t d) { return (n + d - 1) / d; };
  if (p.a.rows == 0 || (p.b.rows == 0 && !has_bias_sum<pass>(p))) return;
  p.tiles_across = std::max<int64_t>(1, up(p.b.rows, tile_size));  // a bias gradient has no need of columns
  const int64_t tiles = up(p.a.rows, tile_size) * p.tiles_across, steps = up(p.a.k, A::step);
  const ProductShape shape{role_of(pass), p.a.rows, p.b.rows, p.a.k};
  const auto kernel = product_kernel<Arithmetic, a_major, b_major, pass>;
  const int cluster = cluster_limit(context, "linear", kernel);
  int64_t splits = splits_of(context, shape, tiles, steps, cluster);
  p.k_of_split = std::max<int64_t>(1, up(steps, splits)) * A::step;
  splits = std::max<int64_t>(1, up(p.a.k, p.k_of_split));
  p.clustered = splits > 1 && splits <= cluster;
  if (splits > 1 && !p.clustered) {
    p.partial = context.scratch(tiles * splits * Layout::size * sizeof(typename Layout::C));
    p.counters = context.counters();
  }
  constexpr size_t staged = (StagedSource<A>::shared_elements + StagedSource<B>::shared_elements) * sizeof(T);
  constexpr size_t shared = std::max(staged, Layout::size * sizeof(typename Layout::C));
  Grid grid{dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)), dim3(tile_threads), shared};
  grid.clustered = p.clustered;
  grid.overlaps = cluster > 1;
  launch(context, "linear", kernel, grid, p);
}

template <Pass pass, Major a_major, Major b_major, class T>
void run(const Context& context, const Product<T>& p, Rounding rounding) {
  constexpr int size = tile_size;
  if constexpr (std::is_same_v<T, float>) {
    switch (rounding) {
      case Rounding::none:
        break;
      case Rounding::tf32:
        return run<Mma<T, size, size, a_major, b_major>, a_major, b_major, pass>(context, p);
      case Rounding::bf16:
        return run<Mma<T, size, size, a_major, b_major, bfloat16>, a_major, b_major, pass>(context, p);
    }
  }
  if constexpr (sizeof(T) >= 4)
    run<Fma<T, size, size, a_major, b_major>, a_major, b_major, pass>(context, p);
  else
    run<Mma<T, size, size, a_major, b_major>, a_major, b_major, pass>(context, p);
}

}  // namespace

}  // namespace fastgan::cuda
