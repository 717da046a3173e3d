// The tangent of a layer (t W^T), which a penalty of D's derivatives asks for beside the usual products.
#include "elementwise.h"
#include "product.h"

namespace fastgan::cuda {

namespace {

constexpr int threads = elementwise_threads;

template <class T>
__global__ void __launch_bounds__(threads, 4) act_tangent_kernel(const __grid_constant__ Tangent<T> a, const T* u) {
  const T slope = T(a.activation.negative_slope);
  with_activation(a.activation.activation, [&](auto act) {
    using A = decltype(act);
    for_vectors<1>(a.batch * a.out, [&](int64_t i) {
      const T saved = a.saved[i], step = u[i], t = gradient<A>(step, saved, slope);
      if (a.mixed != nullptr) a.mixed[i] = a.row_weight[i / a.out] * a.mixed[i] + t;
      if (a.curved != nullptr) a.curved[i] *= A::dd(saved, slope) * step;
      if (a.added != nullptr) a.added[i] += A::dd(saved, slope) * step;
      a.t[i] = t;
    });
  });
}

}  // namespace

template <class T>
void linear_tangent(const Context& context, const LinearTangent<T>& a, Rounding rounding) {
  Product<T> p = {};
  p.a = matrix(a.steps, a.in, a.to.batch, a.in);
  p.b = matrix(a.weight, a.in, a.to.out, a.in);
  p.activation = a.to.activation;
  p.saved = a.to.saved;
  p.second = a.to.t;
  p.row_weight = a.to.row_weight;
  p.mixed = a.to.mixed, p.curved = a.to.curved, p.sum = a.to.added;
  run<Pass::tangent, Major::k, Major::k>(context, p, rounding);
}

template <class T>
void act_tangent(const Context& context, const Tangent<T>& a, const T* u) {
  launch(context, "act_tangent", act_tangent_kernel<T>, elementwise_grid<T>(context, a.batch * a.out), a, u);
}

#define FASTGAN_INSTANTIATE(T)                                                        \
  template void linear_tangent<T>(const Context&, const LinearTangent<T>&, Rounding); \
  template void act_tangent<T>(const Context&, const Tangent<T>&, const T*);
FASTGAN_INSTANTIATE(float)
FASTGAN_INSTANTIATE(double)
#undef FASTGAN_INSTANTIATE

}  // namespace fastgan::cuda
