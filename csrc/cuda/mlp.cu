#include "mlp_kernels.h"

namespace fastgan::cuda {

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
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
FASTGAN_INSTANTIATE(bfloat16)
FASTGAN_INSTANTIATE(float16)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
