// Numbers in float64, each with a bound on how far a kernel's rounded one may be from it.
//
// The formulas of csrc/core are templates of the type of arithmetic. With this type they give the value and, operation
// by operation, what rounding can have made of it: each result is off by its operands' bounds, carried on, and by a
// unit roundoff of itself (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 2.2). So no check
// has a tolerance. A fused multiply-add rounds once where a product and a sum round twice: the bound holds for both.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "../../csrc/core/adam.h"

namespace fastgan {  // where the formulas look for its functions

struct Bounded {
  // Of the arithmetic that is being checked: its unit roundoff and that of this float64; the smallest normal number,
  // below which a result may be zero or have few digits.
  static inline double unit = 0, smallest = 0;
  static inline bool is_float = false;
  // Set where rounding decides on which side of a jump a number is: the inputs of a check must not be there.
  static inline bool is_at_jump = false;

  Bounded() = default;
  Bounded(double exact) : value(exact), error(is_float ? std::fabs(exact - double(float(exact))) : 0) {}
  Bounded(double about, double bound) : value(about), error(bound) {}

  // A result of `about`, whose operands alone would put it off by `bound`, after `roundings`.
  static Bounded rounded(double about, double bound, double roundings = 1) {
    return {about, bound + roundings * unit * (std::fabs(about) + bound) + smallest};
  }

  double value = 0, error = 0;
};

// The arithmetic on values of type T, for the length of a scope.
template <class T>
struct Arithmetic {
  Arithmetic() {
    Bounded::is_float = sizeof(compute_t<T>) == 4;
    Bounded::unit = std::ldexp(1, Bounded::is_float ? -24 : -53) + std::ldexp(1, -53);
    Bounded::smallest = std::numeric_limits<compute_t<T>>::min();
  }
};

// As a kernel stores it: the 16-bit types round once more.
template <class T>
Bounded stored(Bounded x) {
  if (sizeof(T) > 2) return x;
  const bool is_half = std::is_same_v<T, float16>;
  const double unit = std::ldexp(1, is_half ? -11 : -8), smallest = std::ldexp(1, is_half ? -25 : -134);
  return {x.value, x.error + unit * (std::fabs(x.value) + x.error) + smallest};
}

inline Bounded operator-(Bounded a) { return {-a.value, a.error}; }
inline Bounded operator+(Bounded a, Bounded b) { return Bounded::rounded(a.value + b.value, a.error + b.error); }
inline Bounded operator-(Bounded a, Bounded b) { return a + -b; }
inline Bounded operator*(Bounded a, Bounded b) {
  return Bounded::rounded(a.value * b.value,
                          std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error);
}
// A quotient and a root are good to an ulp, two units: with AVX-512 they are made of estimates (adam_avx512.h).
inline Bounded operator/(Bounded a, Bounded b) {
  const double quotient = a.value / b.value, least = std::fabs(b.value) - b.error;
  return Bounded::rounded(quotient, least > 0 ? (a.error + std::fabs(quotient) * b.error) / least : INFINITY, 2);
}
inline Bounded& operator+=(Bounded& a, Bounded b) { return a = a + b; }

inline bool operator<(Bounded a, Bounded b) {
  const double bound = a.error + b.error;
  if (bound > 0 && std::fabs(a.value - b.value) <= bound) Bounded::is_at_jump = true;
  return a.value < b.value;
}
inline bool operator>(Bounded a, Bounded b) { return b < a; }
inline bool operator<=(Bounded a, Bounded b) { return !(b < a); }
inline bool operator==(Bounded a, Bounded b) { return a.value == b.value; }
inline bool operator!=(Bounded a, Bounded b) { return a.value != b.value; }

// Elementary functions of csrc/core/math.h: good to about 2 ulp, which are 4 units, and 8 with the roundings of an
// argument on the way, as tests/simt/check_core.cpp holds them to (4e-7 of a float).
constexpr double elementary = 8;

inline Bounded abs_(Bounded x) { return {std::fabs(x.value), x.error}; }
inline Bounded exp_(Bounded x) {
  const double value = std::exp(x.value);
  return Bounded::rounded(value, value * std::expm1(x.error), elementary);
}
inline Bounded expm1_(Bounded x) {  // of numbers up to 0, where its slope is at most 1
  return Bounded::rounded(std::expm1(x.value), x.error, elementary);
}
inline Bounded log1p_unit(Bounded e) { return Bounded::rounded(std::log1p(e.value), e.error, elementary); }
inline Bounded tanh_(Bounded x) {
  const double least = std::tanh(std::max(0.0, std::fabs(x.value) - x.error));  // where the slope is largest
  return Bounded::rounded(std::tanh(x.value), (1 - least * least) * x.error, elementary);
}
inline Bounded erf_(Bounded x) {
  return Bounded::rounded(std::erf(x.value), 2 / std::sqrt(M_PI) * x.error, elementary);
}
inline Bounded sqrt_(Bounded x) {
  const double root = std::sqrt(x.value);
  return Bounded::rounded(root, root > 0 ? std::min(x.error / root, std::sqrt(x.error)) : std::sqrt(x.error), 2);
}
inline Bounded maximum(Bounded a, Bounded b) { return {std::max(a.value, b.value), std::max(a.error, b.error)}; }

// For the length of a scope, functions that are continuous: where rounding decides which piece of one a number is on,
// the result of the other is as near as the slope allows.
class Continuous {
 public:
  Continuous() : before_(Bounded::is_at_jump) { Bounded::is_at_jump = false; }
  ~Continuous() { Bounded::is_at_jump = before_; }
  Bounded operator()(Bounded result, double slope, Bounded argument) const {
    if (Bounded::is_at_jump) result.error += slope * argument.error;
    return result;
  }

 private:
  const bool before_;
};

// A sum in whatever order, for kernels add in lanes, tiles and chunks: it is off by at most the terms' own bounds and n
// units of the sum of their sizes, n the number of additions (Higham, section 4.2).
class Sum {
 public:
  void add(Bounded term) {
    value_ += term.value;
    error_ += term.error;
    sizes_ += std::fabs(term.value) + term.error;
    ++terms_;
  }
  Bounded total() const {
    const double n = terms_ * Bounded::unit;
    return {value_, error_ + n / (1 - n) * sizes_};
  }

 private:
  double value_ = 0, error_ = 0, sizes_ = 0;
  int64_t terms_ = 0;
};

}  // namespace fastgan
