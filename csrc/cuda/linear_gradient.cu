// The products of a layer on the way back: input gradient (grad_z W) and weight gradient (grad_z^T x).
#include "product.h"

namespace fastgan::cuda {

template <class T>
void linear_input_gradient(const Context& context, const LinearInputGradient<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.grad_z, a.out, a.batch, a.out);
  p.b = matrix(a.weight, a.weight_stride == 0 ? a.in : a.weight_stride, a.in, a.out);
  p.activation = a.activation;
  p.saved = a.saved;
  p.first = a.grad_x;
  p.second = a.grad_z_before;
  run<Pass::input_gradient, Major::k, Major::row>(context, p, rounding);
}

template <class T>
void linear_weight_gradient(const Context& context, const LinearWeightGradient<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.grad_z, a.out, a.out, a.batch);
  p.b = matrix(a.x, a.in, a.in, a.batch);
  p.second = a.grad_weight;
  p.grad_bias = a.grad_bias;
  run<Pass::weight_gradient, Major::row, Major::row>(context, p, rounding);
}

#define FASTGAN_INSTANTIATE(T)                                                                     \
  template void linear_input_gradient<T>(const Context&, const LinearInputGradient<T>&, Rounding); \
  template void linear_weight_gradient<T>(const Context&, const LinearWeightGradient<T>&, Rounding);
FASTGAN_EACH_FLOATING(FASTGAN_INSTANTIATE)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
