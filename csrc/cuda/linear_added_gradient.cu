// The input gradient of a layer, to which what a penalty of D's derivatives leaves there is added.
#include "product.h"

namespace fastgan::cuda {

template <class T>
void linear_added_gradient(const Context& context, const LinearAddedGradient<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.grad_z, a.out, a.batch, a.out);
  p.b = matrix(a.weight, a.weight_stride == 0 ? a.in : a.weight_stride, a.in, a.out);
  p.activation = a.activation;
  p.saved = a.saved;
  p.second = a.grad_z_before;
  p.added = a.added;
  p.added_begin = a.added_begin * a.in, p.added_end = (a.added_begin + a.added_rows) * a.in;
  run<Pass::added_gradient, Major::k, Major::row>(context, p, rounding);
}

#define FASTGAN_INSTANTIATE(T) \
  template void linear_added_gradient<T>(const Context&, const LinearAddedGradient<T>&, Rounding);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
