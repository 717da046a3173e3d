// The weight gradient (grad_z^T x) with Adam as its epilogue: the gradient stays in registers.
#include "product.h"

namespace fastgan::cuda {

template <class T>
void linear_update(const Context& context, const LinearUpdate<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.grad_z, a.out, a.out, a.batch);
  p.b = matrix(a.x, a.in, a.weight.is_updated() ? a.in : 0, a.batch);
  p.adam_weight = a.weight;
  p.adam_bias = a.bias;
  p.average_rate = a.average_rate;
  p.bias_cancels = a.bias_cancels;
  p.row_weight = a.row_weight;
  p.second = a.grad_weight;
  p.grad_bias = a.grad_bias;
  run<Pass::weight_update, Major::row, Major::row>(context, p, rounding);
}

#define FASTGAN_INSTANTIATE(T) template void linear_update<T>(const Context&, const LinearUpdate<T>&, Rounding);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
