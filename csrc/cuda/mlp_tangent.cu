// What a penalty asks of a narrow network, in one launch: the tangent pass, and, after a barrier of the grid, the
// weight gradients with the update as their epilogue.
#include "mlp_kernels.h"

namespace fastgan::cuda {

namespace {

template <class C>
struct Beside {
  C saved, y, row_weight;
};

// 16 rows' steps through all layers but the last, whose output no weight is of.
template <class N, class T>
__device__ __forceinline__ void tangent_chain(const NarrowNetwork<T>& network, const NarrowTangent<T>& tangent,
                                              int64_t row0, T* resident, T* stage_memory) {
  using C = typename N::C;
  for (int l = 0; l + 1 < network.count; ++l) {
    const NarrowLayer<T>& layer = network.layers[l];
    const Matrix<T> steps = matrix(tangent.steps, layer.in, tangent.rows, layer.in);
    const Matrix<T> weight = matrix(layer.weight, layer.in, layer.out, layer.in);
    T* const next = resident + l % 2 * N::resident_size;
    const auto epilogue = [&](const C* tile, int col0) {
      with_activation(layer.activation.activation, [&](auto act) {
        using A = decltype(act);
        const C slope = C(layer.activation.negative_slope);
        const auto is_inside = [&](int sample, int col) { return col < layer.out && row0 + sample < tangent.rows; };
        const auto beside = [&](int sample, int col) {
          Beside<C> beside{};
          if (!is_inside(sample, col)) return beside;
          const int64_t row = tangent.first + row0 + sample;
          beside.saved = layer.saved[row * layer.out + col], beside.y = layer.y[row * layer.out + col];
          beside.row_weight = tangent.row_weight[row];
          return beside;
        };
        for_tile<N, T, sizeof(T) == 8 ? 1 : 4>(
            tile, col0, layer.out, beside, [&](int sample, int col, C u, const Beside<C>& at) {
              T t = 0;
              if (is_inside(sample, col)) {
                t = gradient<A>(u, at.saved, slope);
                layer.y[(tangent.first + row0 + sample) * layer.out + col] = at.row_weight * at.y + t;
              }
              next[sample * N::resident_stride + col] = t;
            });
      });
    };
    layer_product<N, T, Major::k>(l == 0 ? &steps : nullptr, resident + (l + 1) % 2 * N::resident_size, weight, row0,
                                  stage_memory, epilogue);
  }
}

template <class T, bool tensor_cores>
__global__ void __launch_bounds__(tile_threads, 2)
    mlp_tangent_kernel(const __grid_constant__ NarrowNetwork<T> network,
                       const __grid_constant__ NarrowTangent<T> tangent) {
  using N = Narrow<T, tensor_cores>;
  T* const resident = reinterpret_cast<T*>(dynamic_shared());
  for (int64_t row0 = int64_t{blockIdx.x} * samples; row0 < tangent.rows; row0 += int64_t{gridDim.x} * samples)
    tangent_chain<N>(network, tangent, row0, resident, resident + 2 * N::resident_size);
  grid_barrier();
  int tile = blockIdx.x;
  for (int l = 0; l < network.count; ++l) {
    const NarrowLayer<T>& layer = network.layers[l];
    if (!wants_weight<true>(layer) && !wants_bias<true>(layer)) continue;
    const int tiles = weight_tiles(layer.in, layer.out);
    for (; tile < tiles; tile += gridDim.x)
      weight_gradient_tile<N, true, true>(network, layer, tile, resident, tangent.row_weight);
    tile -= tiles;
  }
}

}  // namespace

template <class T>
void mlp_tangent_update(const Context& context, const NarrowNetwork<T>& network, const NarrowTangent<T>& tangent,
                        bool tf32) {
  int64_t work = (tangent.rows + samples - 1) / samples, tiles = 0;
  for (int l = 0; l < network.count; ++l) tiles += weight_tiles(network.layers[l].in, network.layers[l].out);
  work = std::max(work, tiles);
  with_arithmetic<T>(tf32, [&](auto tensor_cores) {
    using N = Narrow<T, tensor_cores>;
    const auto kernel = mlp_tangent_kernel<T, tensor_cores>;
    Grid grid{dim3(1), dim3(tile_threads), std::max(N::forward_bytes, N::backward_bytes), true};
    grid.blocks.x = static_cast<unsigned>(std::min(work, resident_blocks(context, "mlp_tangent", kernel, grid)));
    launch(context, "mlp_tangent", kernel, grid, network, tangent);
  });
}

template void mlp_tangent_update<float>(const Context&, const NarrowNetwork<float>&, const NarrowTangent<float>&, bool);
template void mlp_tangent_update<double>(const Context&, const NarrowNetwork<double>&, const NarrowTangent<double>&,
                                         bool);

}  // namespace fastgan::cuda
