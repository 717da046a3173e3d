// Activations with first and second derivatives: the compiled twin of reference.ACTIVATIONS.
//
// Each derivative is a function of one saved number: the output y where the output determines it, so that the
// pre-activation z need not be kept, else z. To add an activation, name it in FASTGAN_ACTIVATIONS, as reference.py
// does, and write its Act, with
//   value, d, dd           the value, the first and the second derivative by z
//   saved                  what the derivatives are functions of
//   is_piecewise_linear    whether the second derivative is zero almost everywhere
//   composed               the same in torch's ops, which are found by the namespace of their argument: derivatives of
//                          higher order are torch's own
// All else follows: the tests and the checks of the kernels hold it against reference.py and against difference
// quotients.
#pragma once

#include <type_traits>

#include "math.h"

#define FASTGAN_ACTIVATIONS(X) X(identity) X(relu) X(leaky_relu) X(elu) X(tanh) X(sigmoid) X(softplus) X(silu) X(gelu)

namespace fastgan {

enum class Activation : int { FASTGAN_ACTIVATIONS(FASTGAN_ENUMERATOR) };
constexpr const char* activation_names[] = {FASTGAN_ACTIVATIONS(FASTGAN_NAME)};
constexpr int activation_count = sizeof(activation_names) / sizeof(activation_names[0]);

struct ActivationArguments {
  Activation activation;
  double negative_slope;
};

// What the derivatives are functions of.
enum class Saved {
  nothing,  // they are constant
  output,
  output_copy,  // as well, but torch saves the argument: the caller may change the output in place
  argument,
};

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
  static constexpr Saved saved(double) { return Saved::nothing; }
  static constexpr bool is_piecewise_linear = true;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return z;
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
  static constexpr Saved saved(double) { return Saved::output; }
  static constexpr bool is_piecewise_linear = true;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return relu(z);
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
  // A negative slope folds both signs of z onto one of y.
  static constexpr Saved saved(double slope) { return slope >= 0 ? Saved::output_copy : Saved::argument; }
  static constexpr bool is_piecewise_linear = true;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double slope) {
    return leaky_relu(z, slope);
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
  static constexpr Saved saved(double) { return Saved::argument; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return elu(z);
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
  static constexpr Saved saved(double) { return Saved::output; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return tanh(z);
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
  static constexpr Saved saved(double) { return Saved::output; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return sigmoid(z);
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
  static constexpr Saved saved(double) { return Saved::argument; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return softplus(z);
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
  static constexpr Saved saved(double) { return Saved::argument; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return silu(z);
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
  static constexpr Saved saved(double) { return Saved::argument; }
  static constexpr bool is_piecewise_linear = false;
  template <class Tensor>
  static Tensor composed(const Tensor& z, double) {
    return gelu(z);
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
#define FASTGAN_CASE(name) \
  case Activation::name:   \
    return f(Act<Activation::name>{});
    FASTGAN_ACTIVATIONS(FASTGAN_CASE)
#undef FASTGAN_CASE
  }
}

FASTGAN_INLINE Saved saved_by(ActivationArguments arguments) {
  switch (arguments.activation) {
#define FASTGAN_CASE(name) \
  case Activation::name:   \
    return Act<Activation::name>::saved(arguments.negative_slope);
    FASTGAN_ACTIVATIONS(FASTGAN_CASE)
#undef FASTGAN_CASE
  }
  return Saved::argument;
}

// Whether the pre-activation need not be kept.
FASTGAN_INLINE bool saves_output(ActivationArguments arguments) { return saved_by(arguments) != Saved::argument; }

// Whether the second derivative is zero almost everywhere.
FASTGAN_INLINE bool is_piecewise_linear(Activation activation) {
  switch (activation) {
#define FASTGAN_CASE(name) \
  case Activation::name:   \
    return Act<Activation::name>::is_piecewise_linear;
    FASTGAN_ACTIVATIONS(FASTGAN_CASE)
#undef FASTGAN_CASE
  }
  return false;
}

}  // namespace fastgan
