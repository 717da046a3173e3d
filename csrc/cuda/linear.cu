// The product of a layer, forward (x W^T). Those of the way back are in linear_gradient.cu, which compiles beside it.
#include "product.h"

namespace fastgan::cuda {

template <class T>
void linear_forward(const Context& context, const LinearForward<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.x, a.in, a.batch, a.in);
  p.b = matrix(a.weight, a.in, a.out, a.in);
  p.activation = a.activation;
  p.bias = a.bias;
  p.first = a.z;
  p.second = a.y;
  run<Pass::forward, Major::k, Major::k>(context, p, rounding);
}

#define FASTGAN_INSTANTIATE(T) template void linear_forward<T>(const Context&, const LinearForward<T>&, Rounding);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
