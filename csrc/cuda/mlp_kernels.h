// A whole narrow network in one launch: what passes from layer to layer stays in shared memory.
//
// Forward, and the way back from layer to layer: a block takes 16 samples through all layers; the weights stream by,
// from the second-level cache. Weight gradients are sums over all samples: after a barrier of the whole grid, each tile
// of 64x64 of each of them is one block's, which adds in the order of the samples. So no atomics, and the same bits
// each time.
#pragma once

#include <algorithm>
#include <type_traits>

#include "epilogue.h"
#include "grid_barrier.h"
#include "mlp.h"

namespace fastgan::cuda {

namespace {

constexpr int samples = 16;      // a block
constexpr int across = 128;      // outputs of a layer at a time
constexpr int weight_tile = 64;  // of a weight gradient

template <class T, bool tensor_cores>
struct Narrow {
  template <int rows, int cols, Major a, Major b>
  using Arithmetic = std::conditional_t<tensor_cores, Mma<T, rows, cols, a, b>, Fma<T, rows, cols, a, b>>;
  using C = typename Arithmetic<samples, across, Major::k, Major::k>::Accumulator;

  // Shared memory: two layers' outputs, then the stages, which the tile of sums takes the place of.
  static constexpr int resident_stride = max_narrow_width + 16 / int(sizeof(T));
  static constexpr int resident_size = samples * resident_stride;
  static constexpr int tile_stride = across + 16 / int(sizeof(C));
  static constexpr int weight_stride = weight_tile + 16 / int(sizeof(C));
  static constexpr int step = Padded<T, Major::k, samples>::step;
  using Input = StagedSource<Padded<T, Major::k, samples>>;
  template <Major major>
  using Weight = StagedSource<Padded<T, major, across>>;
  using Rows = StagedSource<Padded<T, Major::row, weight_tile>>;

  static constexpr size_t forward_bytes =
      2 * resident_size * sizeof(T) + std::max((Input::shared_elements + Weight<Major::k>::shared_elements) * sizeof(T),
                                               samples * tile_stride * sizeof(C));
  static constexpr size_t chain_bytes =
      2 * resident_size * sizeof(T) +
      std::max((Input::shared_elements + Weight<Major::row>::shared_elements) * sizeof(T),
               samples * tile_stride * sizeof(C));
  static constexpr size_t backward_bytes =
      std::max({chain_bytes, 2 * Rows::shared_elements * sizeof(T), (weight_stride + 1) * weight_tile * sizeof(C)});
};

// One layer's product for the samples from row0 on, `across` columns at a time: epilogue(tile, col0) is called for each
// such tile of sums. The left operand is `from` in global memory, or, where that is null, on chip.
template <class N, class T, Major weight_major, class Epilogue>
__device__ __forceinline__ void layer_product(const Matrix<T>* from, const T* resident, const Matrix<T>& weight,
                                              int64_t row0, T* stage_memory, const Epilogue& epilogue) {
  using Arithmetic = typename N::template Arithmetic<samples, across, Major::k, weight_major>;
  using C = typename N::C;
  C* const tile = reinterpret_cast<C*>(stage_memory);
  for (int col0 = 0; col0 < weight.rows; col0 += across) {
    Arithmetic arithmetic;
    arithmetic.clear();
    const typename N::template Weight<weight_major> b{stage_memory + N::Input::shared_elements, weight, col0};
    const auto nothing = [](int, int64_t) {};
    if (from != nullptr)
      multiply_tiles(arithmetic, typename N::Input{stage_memory, *from, row0}, b, 0, weight.k, nothing);
    else
      multiply_tiles(arithmetic, ResidentSource<T>{resident, N::resident_stride}, b, 0, weight.k, nothing);
    arithmetic.template write<N::tile_stride>(tile);
    __syncthreads();
    epilogue(static_cast<const C*>(tile), col0);
    __syncthreads();  // the tile's place is the stages', and what was put on chip is read next
  }
}

// Calls each(sample, col, sum, loaded) for a tile of sums from column col0 on, every sample of the block and every
// column up to the next multiple of a step after `cols`: a product that reads what is on chip reads so far. A thread
// has one column; loaded is load(sample, col), called for several samples ahead, so that their memory is on its way
// together.
template <class N, class T, int in_flight, class Load, class Each>
__device__ __forceinline__ void for_tile(const typename N::C* tile, int col0, int cols, const Load& load,
                                         const Each& each) {
  static_assert(tile_threads == across, "a column a thread");
  const int padded = (cols + N::step - 1) / N::step * N::step;
  const int col = col0 + int(threadIdx.x);
  if (col >= padded) return;
#pragma unroll 1
  for (int begin = 0; begin < samples; begin += in_flight) {
    decltype(load(0, 0)) loaded[in_flight];
#pragma unroll
    for (int i = 0; i < in_flight; ++i) loaded[i] = load(begin + i, col);
#pragma unroll
    for (int i = 0; i < in_flight; ++i)
      each(begin + i, col, tile[(begin + i) * N::tile_stride + int(threadIdx.x)], loaded[i]);
  }
}

template <class T, bool tensor_cores>
__global__ void __launch_bounds__(tile_threads, 2)
    mlp_forward_kernel(const __grid_constant__ NarrowNetwork<T> network) {
  using N = Narrow<T, tensor_cores>;
  using C = typename N::C;
  T* const resident = reinterpret_cast<T*>(dynamic_shared());
  T* const stage_memory = resident + 2 * N::resident_size;
  const int64_t row0 = int64_t{blockIdx.x} * samples;
  for (int l = 0; l < network.count; ++l) {
    const NarrowLayer<T>& layer = network.layers[l];
    const Matrix<T> x = matrix(layer.x, layer.in, network.batch, layer.in);
    const Matrix<T> weight = matrix(layer.weight, layer.in, layer.out, layer.in);
    T* const next = l + 1 < network.count ? resident + l % 2 * N::resident_size : nullptr;
    const auto epilogue = [&](const C* tile, int col0) {
      with_activation(layer.activation.activation, [&](auto act) {
        using A = decltype(act);
        const C slope = C(layer.activation.negative_slope);
        const bool real = col0 + int(threadIdx.x) < layer.out;
        const C bias = real && layer.bias != nullptr ? load(layer.bias + col0 + threadIdx.x) : C(0);
        const auto nothing = [](int, int) { return 0; };
        for_tile<N, T, sizeof(T) == 8 ? 1 : 4>(tile, col0, layer.out, nothing, [&](int sample, int col, C sum, int) {
          const C z = layer.bias != nullptr ? sum + bias : sum;
          T y{};
          if (real) store(&y, A::value(z, slope));
          if (next != nullptr) next[sample * N::resident_stride + col] = y;
          if (!real || row0 + sample >= network.batch) return;
          const int64_t place = (row0 + sample) * layer.out + col;
          if (layer.z != nullptr) store(layer.z + place, z);
          if (layer.y != nullptr) layer.y[place] = y;
        });
      });
    };
    layer_product<N, T, Major::k>(l == 0 ? &x : nullptr, resident + (l + 1) % 2 * N::resident_size, weight, row0,
                                  stage_memory, epilogue);
  }
}

// Where the gradient by the input of layer l goes: through the activation before, if there is one (else saved is null).
template <class T>
struct Before {
  __device__ __forceinline__ Before(const NarrowNetwork<T>& network, int l)
      : width(l == 0 ? network.input_width : network.layers[l].in),
        activation(l == 0 ? network.input_activation : network.layers[l - 1].activation),
        saved(l == 0 ? network.input_saved : network.layers[l - 1].saved),
        grad(l == 0 ? network.grad_input : network.layers[l - 1].grad_z) {}

  const int width;
  const ActivationArguments activation;
  const T* const saved;
  T* const grad;
};

// grad_z of all layers for 16 samples, from the last to the lowest, and the gradient by the input.
template <class N, class T>
__device__ __forceinline__ void backward_chain(const NarrowNetwork<T>& network, int64_t row0, T* resident,
                                               T* stage_memory) {
  using C = typename N::C;
  const int last = network.count - 1;
  const NarrowLayer<T>& top = network.layers[last];
  if (network.grad_output != nullptr) {
    with_activation(top.activation.activation, [&](auto act) {
      using A = decltype(act);
      const C slope = C(top.activation.negative_slope);
      for (int i = threadIdx.x; i < samples * top.out; i += tile_threads) {
        if (row0 + i / top.out >= network.batch) break;
        const int64_t place = row0 * top.out + i;
        store(top.grad_z + place, gradient<A>(C(load(network.grad_output + place)), C(load(top.saved + place)), slope));
      }
    });
    __syncthreads();
  }
  for (int l = last; l > network.lowest || (l == 0 && network.grad_input != nullptr); --l) {
    const NarrowLayer<T>& layer = network.layers[l];
    const Matrix<T> grad_z = matrix<T>(layer.grad_z, layer.out, network.batch, layer.out);
    const Matrix<T> weight = matrix(layer.weight, layer.in, Before<T>(network, l).width, layer.out);
    const auto epilogue = [&](const C* tile, int col0) {
      const Before<T> before(network, l);  // again: what lives through the product takes registers from it
      T* const next = resident + (l + 1) % 2 * N::resident_size;
      with_activation(before.saved == nullptr ? Activation::identity : before.activation.activation, [&](auto act) {
        using A = decltype(act);
        const C slope = C(before.activation.negative_slope);
        const auto place_of = [&](int sample, int col) { return (row0 + sample) * before.width + col; };
        const auto is_inside = [&](int sample, int col) { return col < before.width && row0 + sample < network.batch; };
        const auto saved = [&](int sample, int col) {
          return before.saved != nullptr && is_inside(sample, col) ? load(before.saved + place_of(sample, col)) : C(0);
        };
        // More doubles at a time would spill registers.
        for_tile<N, T, sizeof(T) == 8 ? 4 : samples>(
            tile, col0, before.width, saved, [&](int sample, int col, C sum, C at) {
              T g{};
              if (is_inside(sample, col)) {
                store(&g, before.saved == nullptr ? sum : gradient<A>(sum, at, slope));
                before.grad[place_of(sample, col)] = g;
              }
              if (l > 0) next[sample * N::resident_stride + col] = g;
            });
      });
    };
    layer_product<N, T, Major::row>(l == last ? &grad_z : nullptr, resident + l % 2 * N::resident_size, weight, row0,
                                    stage_memory, epilogue);
  }
}

// Whether a gradient by the weight, or by the bias, is wanted: for the update, or to be stored.
template <bool trains, class T>
__device__ __forceinline__ bool wants_weight(const NarrowLayer<T>& layer) {
  return trains ? layer.adam_weight.is_updated() : layer.grad_weight != nullptr;
}
template <bool trains, class T>
__device__ __forceinline__ bool wants_bias(const NarrowLayer<T>& layer) {
  return trains ? layer.adam_bias.is_updated() : layer.grad_bias != nullptr;
}

// One tile of grad_weight = grad_z^T x, and, with the first tile of a row of them, grad_bias; of rows that count
// differently there, where `weighted`.
template <class N, bool trains, bool weighted = false, class T>
__device__ __forceinline__ void weight_gradient_tile(const NarrowNetwork<T>& network, const NarrowLayer<T>& layer,
                                                     int tile_index, T* stage_memory, const T* row_weight = nullptr) {
  using Arithmetic = typename N::template Arithmetic<weight_tile, weight_tile, Major::row, Major::row>;
  using C = typename N::C;
  const int64_t batch = network.batch;
  const int tiles_across = (layer.in + weight_tile - 1) / weight_tile;
  const int row0 = tile_index / tiles_across * weight_tile, col0 = tile_index % tiles_across * weight_tile;
  C* const tile = reinterpret_cast<C*>(stage_memory);
  Arithmetic arithmetic;
  arithmetic.clear();
  const typename N::Rows a{stage_memory, matrix<T>(layer.grad_z, layer.out, layer.out, batch), row0};
  const typename N::Rows b{stage_memory + N::Rows::shared_elements, matrix(layer.x, layer.in, layer.in, batch), col0};
  const bool sums_bias = wants_bias<trains>(layer) && col0 == 0 && threadIdx.x < weight_tile;
  C bias_sum = 0;
  multiply_tiles(arithmetic, a, b, 0, batch, [&](int stage, int64_t first) {
    if (!sums_bias) return;
    const auto step = a.at(stage, 0);
    if constexpr (weighted)
      for (int k = 0; k < N::step && first + k < batch; ++k)
        bias_sum += load(step(0, int(threadIdx.x), k)) * load(row_weight + first + k);
    else
      for (int k = 0; k < N::step; ++k) bias_sum += load(step(0, int(threadIdx.x), k));
  });
  arithmetic.template write<N::weight_stride>(tile);
  __syncthreads();
  if (wants_weight<trains>(layer)) {
    const Tile<C, weight_tile, N::weight_stride> sums{tile, row0, col0, layer.out, layer.in};
    if constexpr (trains)
      update_tile(sums, layer.adam_weight, network.average_rate);
    else
      store_tile(sums, layer.grad_weight);
  }
  const int row = row0 + int(threadIdx.x);
  if (sums_bias && row < layer.out) {
    if constexpr (trains)
      update(layer.adam_bias, *layer.adam_bias.step, row, bias_sum, network.average_rate);
    else
      store(layer.grad_bias + row, bias_sum);
  }
  __syncthreads();  // before the next tile's stages
}

__host__ __device__ inline int weight_tiles(int in, int out) {
  return (in + weight_tile - 1) / weight_tile * ((out + weight_tile - 1) / weight_tile);
}

template <class T, bool tensor_cores, bool trains>
__global__ void __launch_bounds__(tile_threads, 2)
    mlp_backward_kernel(const __grid_constant__ NarrowNetwork<T> network) {
  using N = Narrow<T, tensor_cores>;
  T* const resident = reinterpret_cast<T*>(dynamic_shared());
  for (int64_t row0 = int64_t{blockIdx.x} * samples; row0 < network.batch; row0 += int64_t{gridDim.x} * samples)
    backward_chain<N>(network, row0, resident, resident + 2 * N::resident_size);
  grid_barrier();
  int tile = blockIdx.x;
  for (int l = network.lowest; l < network.count; ++l) {
    const NarrowLayer<T>& layer = network.layers[l];
    if (!wants_weight<trains>(layer) && !wants_bias<trains>(layer)) continue;
    const int tiles = weight_tiles(layer.in, layer.out);
    for (; tile < tiles; tile += gridDim.x) weight_gradient_tile<N, trains>(network, layer, tile, resident);
    tile -= tiles;
  }
}

template <class T>
constexpr bool always_tensor_cores = sizeof(T) == 2;

// Calls f with whether the tensor cores do the arithmetic.
template <class T, class F>
void with_arithmetic(bool tf32, const F& f) {
  if constexpr (std::is_same_v<T, float>) {
    if (tf32) return f(std::true_type{});
  }
  f(std::bool_constant<always_tensor_cores<T>>{});
}

template <bool trains, class T>
void run_backward(const Context& context, const NarrowNetwork<T>& network, bool tf32) {
  int64_t work = (network.batch + samples - 1) / samples, tiles = 0;
  for (int l = network.lowest; l < network.count; ++l)
    tiles += weight_tiles(network.layers[l].in, network.layers[l].out);
  work = std::max(work, tiles);
  with_arithmetic<T>(tf32, [&](auto tensor_cores) {
    const auto kernel = mlp_backward_kernel<T, tensor_cores, trains>;
    Grid grid{dim3(1), dim3(tile_threads), Narrow<T, tensor_cores>::backward_bytes, true};
    grid.blocks.x = static_cast<unsigned>(std::min(work, resident_blocks(context, "mlp_backward", kernel, grid)));
    launch(context, "mlp_backward", kernel, grid, network);
  });
}

}  // namespace

template <class T>
bool is_narrow(const Context& context, const NarrowNetwork<T>& network) {
  using N = Narrow<T, always_tensor_cores<T>>;
  bool narrow = network.count <= max_narrow_layers && network.batch > 0 &&
                std::max(N::forward_bytes, N::backward_bytes) <= context.shared_limit;
  for (int l = 0; narrow && l < network.count; ++l)
    narrow = network.layers[l].in > 0 && network.layers[l].out > 0 &&
             (l + 1 == network.count || network.layers[l].out <= max_narrow_width);
  return narrow;
}

template <class T>
void mlp_forward(const Context& context, const NarrowNetwork<T>& network, bool tf32) {
  with_arithmetic<T>(tf32, [&](auto tensor_cores) {
    const unsigned blocks = static_cast<unsigned>((network.batch + samples - 1) / samples);
    launch(context, "mlp_forward", mlp_forward_kernel<T, tensor_cores>,
           Grid{dim3(blocks), dim3(tile_threads), Narrow<T, tensor_cores>::forward_bytes}, network);
  });
}

template <class T>
void mlp_backward(const Context& context, const NarrowNetwork<T>& network, bool tf32) {
  run_backward<false>(context, network, tf32);
}

#define FASTGAN_INSTANTIATE(T)                                                 \
  template bool is_narrow<T>(const Context&, const NarrowNetwork<T>&);         \
  template void mlp_forward<T>(const Context&, const NarrowNetwork<T>&, bool); \
  template void mlp_backward<T>(const Context&, const NarrowNetwork<T>&, bool);

}  // namespace fastgan::cuda
