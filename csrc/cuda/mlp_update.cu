// The way back through a narrow network, its weight gradients with Adam as their epilogue.
#include "mlp_kernels.h"

namespace fastgan::cuda {

template <class T>
void mlp_update(const Context& context, const NarrowNetwork<T>& network, bool tf32) {
  run_backward<true>(context, network, tf32);
}

template void mlp_update<float>(const Context&, const NarrowNetwork<float>&, bool);
template void mlp_update<double>(const Context&, const NarrowNetwork<double>&, bool);

}  // namespace fastgan::cuda
