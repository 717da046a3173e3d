// Activations with first and second derivatives: the compiled twin of reference.ACTIVATIONS, in its order.
//
// Each derivative is a function of one saved number: the output y where the output determines it, so that the
// pre-activation z need not be kept, else z. d and dd are the first and second derivative by z.
#pragma once

#include <type_traits>

#include "math.h"

namespace fastgan {

enum class Activation : int { identity, relu, leaky_relu, elu, tanh, sigmoid, softplus, silu, gelu, count };

// Whether the saved number is y. A leaky_relu with a negative slope folds both signs of z onto one of y.
FASTGAN_INLINE bool saves_output(Activation activation, double negative_slope) {
  switch (activation) {
    case Activation::leaky_relu:
      return negative_slope >= 0;
    case Activation::elu:
    case Activation::softplus:
    case Activation::silu:
    case Activation::gelu:
      return false;
    default:
      return true;
  }
}

struct ActivationArguments {
  Activation activation;
  double negative_slope;
};

FASTGAN_INLINE bool saves_output(ActivationArguments a) { return saves_output(a.activation, a.negative_slope); }

// Whether the second derivative is zero almost everywhere.
FASTGAN_INLINE bool is_piecewise_linear(Activation activation) {
  return activation == Activation::identity || activation == Activation::relu || activation == Activation::leaky_relu;
}

template <Activation A>
struct Act;

template <>
struct Act<Activation::identity> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return z;
  }
  template <class C>
  static FASTGAN_INLINE C d(C, C) {
    return C(1);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C, C) {
    return C(0);
  }
};

// The comparisons are torch's, so that NaN ends up where torch puts it.
template <>
struct Act<Activation::relu> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return select(z < C(0), C(0), z);
  }
  template <class C>
  static FASTGAN_INLINE C d(C y, C) {
    return select(y <= C(0), C(0), C(1));
  }
  template <class C>
  static FASTGAN_INLINE C dd(C, C) {
    return C(0);
  }
};

template <>
struct Act<Activation::leaky_relu> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C slope) {
    return select(z > C(0), z, z * slope);
  }
  template <class C>
  static FASTGAN_INLINE C d(C saved, C slope) {
    return select(saved > C(0), C(1), slope);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C, C) {
    return C(0);
  }
};

template <>
struct Act<Activation::elu> {  // alpha = 1
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return select(z > C(0), z, expm1_(select(z > C(0), C(0), z)));
  }
  template <class C>
  static FASTGAN_INLINE C d(C z, C) {
    return select(z <= C(0), exp_(select(z > C(0), C(0), z)), C(1));
  }
  template <class C>
  static FASTGAN_INLINE C dd(C z, C) {
    return select(z < C(0), exp_(select(z > C(0), C(0), z)), C(0));
  }
};

template <>
struct Act<Activation::tanh> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return tanh_(z);
  }
  template <class C>
  static FASTGAN_INLINE C d(C y, C) {
    return C(1) - y * y;
  }
  template <class C>
  static FASTGAN_INLINE C dd(C y, C) {
    return C(-2) * y * (C(1) - y * y);
  }
};

template <>
struct Act<Activation::sigmoid> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return sigmoid_(z);
  }
  template <class C>
  static FASTGAN_INLINE C d(C y, C) {
    return y * (C(1) - y);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C y, C) {
    return y * (C(1) - y) * (C(1) - C(2) * y);
  }
};

template <>
struct Act<Activation::softplus> {  // linear above 20, as torch.nn.Softplus by default
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return select(z > C(20), z, softplus_(z));
  }
  template <class C>
  static FASTGAN_INLINE C d(C z, C) {
    return select(z > C(20), C(1), sigmoid_(z));
  }
  template <class C>
  static FASTGAN_INLINE C dd(C z, C) {
    const Sigmoids<C> s = sigmoids(z);
    return select(z > C(20), C(0), s.positive * s.negative);
  }
};

template <>
struct Act<Activation::silu> {
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return z * sigmoid_(z);
  }
  template <class C>
  static FASTGAN_INLINE C d(C z, C) {
    const Sigmoids<C> s = sigmoids(z);
    return s.positive * (C(1) + z * s.negative);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C z, C) {
    const Sigmoids<C> s = sigmoids(z);
    return s.positive * s.negative * (C(2) + z * (s.negative - s.positive));
  }
};

template <>
struct Act<Activation::gelu> {  // exact: z Phi(z)
  template <class C>
  static FASTGAN_INLINE C cdf(C z) {
    return C(0.5) * (C(1) + erf_(z * C(0.70710678118654752440)));
  }
  template <class C>
  static FASTGAN_INLINE C density(C z) {
    return C(0.39894228040143267794) * exp_(C(-0.5) * z * z);
  }
  template <class C>
  static FASTGAN_INLINE C value(C z, C) {
    return z * cdf(z);
  }
  template <class C>
  static FASTGAN_INLINE C d(C z, C) {
    return cdf(z) + z * density(z);
  }
  template <class C>
  static FASTGAN_INLINE C dd(C z, C) {
    return density(z) * (C(2) - z * z);
  }
};

// The gradient by z of a gradient g by y. As in torch: relu selects, so that what does not pass is zero even where g is
// infinite or NaN; the others multiply.
template <class A, class C>
FASTGAN_INLINE C gradient(C g, C saved, C slope) {
  if constexpr (std::is_same_v<A, Act<Activation::relu>>)
    return select(saved <= C(0), C(0), g);
  else
    return g * A::d(saved, slope);
}

// Calls f with the Act of a run-time activation.
#ifdef __CUDACC__
#pragma nv_exec_check_disable
#endif
template <class F>
FASTGAN_INLINE void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::identity:
      return f(Act<Activation::identity>{});
    case Activation::relu:
      return f(Act<Activation::relu>{});
    case Activation::leaky_relu:
      return f(Act<Activation::leaky_relu>{});
    case Activation::elu:
      return f(Act<Activation::elu>{});
    case Activation::tanh:
      return f(Act<Activation::tanh>{});
    case Activation::sigmoid:
      return f(Act<Activation::sigmoid>{});
    case Activation::softplus:
      return f(Act<Activation::softplus>{});
    case Activation::silu:
      return f(Act<Activation::silu>{});
    case Activation::gelu:
      return f(Act<Activation::gelu>{});
    case Activation::count:
      return;
  }
}

}  // namespace fastgan
