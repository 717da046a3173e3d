// Elementary functions without branches or table lookups, so that loops over them vectorise on the host. Float results
// are good to about 2 ulp; double uses the C library. Coefficients: fit_math.py.
#pragma once

#include <cmath>

#include "scalar.h"

namespace fastgan {

template <class C>
FASTGAN_INLINE C select(bool condition, C yes, C no) {
  return condition ? yes : no;
}

// The larger, or NaN where one of them is NaN, as torch.maximum.
template <class C>
FASTGAN_INLINE C maximum(C a, C b) {
  return select((a < b) | (b != b), b, a);
}

// torch.lerp, from either end, so that infinities meet as they do there.
template <class C>
FASTGAN_INLINE C lerp(C from, C to, C weight) {
  const bool near = weight < C(0.5);
  return select(near, from, to) + select(near, weight, weight - C(1)) * (to - from);
}

FASTGAN_INLINE double exp_(double x) { return std::exp(x); }
FASTGAN_INLINE double expm1_(double x) { return std::expm1(x); }
FASTGAN_INLINE double log1p_unit(double e) { return std::log1p(e); }
FASTGAN_INLINE double tanh_(double x) { return std::tanh(x); }
FASTGAN_INLINE double erf_(double x) { return std::erf(x); }
FASTGAN_INLINE double abs_(double x) { return std::fabs(x); }
FASTGAN_INLINE float abs_(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
FASTGAN_INLINE float copysign_(float magnitude, float sign) {
  return float_of(bits_of(magnitude) | (bits_of(sign) & 0x80000000u));
}

// 2^n for an integer-valued n in [-126, 127].
FASTGAN_INLINE float exp2_integer(float n) { return float_of(uint32_t(int32_t(n) + 127) << 23); }

// exp(x) = 2^n exp(r), |r| <= ln2 / 2. The scale is applied in two factors, so that subnormal results are right.
FASTGAN_INLINE float exp_(float x) {
  const float clamped = select(x > 89.0f, 89.0f, select(x < -104.0f, -104.0f, x));  // a NaN passes through
  const float shifter = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float n = (select(clamped == clamped, clamped, 0.0f) * 1.44269504f + shifter) - shifter;
  const float r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln2 in two parts
  float p = 1.394111328e-03f;
  p = p * r + 8.363175254e-03f;
  p = p * r + 4.166637525e-02f;
  p = p * r + 1.666657701e-01f;
  p = p * r + 5.000000027e-01f;
  const float value = (p * r) * r + r + 1.0f;
  const float half = (n * 0.5f + shifter) - shifter;
  return value * exp2_integer(half) * exp2_integer(n - half);
}

// exp(x) - 1 for x <= 0: a polynomial where the subtraction would cancel.
FASTGAN_INLINE float expm1_(float x) {
  float p = 1.648803035e-04f;
  p = p * x + 1.370707065e-03f;
  p = p * x + 8.328710468e-03f;
  p = p * x + 4.166613186e-02f;
  p = p * x + 1.666666440e-01f;
  p = p * x + 4.999999998e-01f;
  return select(x > -0.5f, (p * x) * x + x, exp_(x) - 1.0f);
}

// log(1 + e) for e in [0, 1], by 2 atanh(e / (2 + e)).
FASTGAN_INLINE float log1p_unit(float e) {
  const float s = e / (2.0f + e);
  const float q = s * s;
  float p = 1.040756326e-01f;
  p = p * q + 8.728535537e-02f;
  p = p * q + 1.113272594e-01f;
  p = p * q + 1.428513820e-01f;
  p = p * q + 2.000000559e-01f;
  p = p * q + 3.333333332e-01f;
  const float twice = s + s;
  return (p * q) * twice + twice;
}

FASTGAN_INLINE float tanh_(float x) {
  const float q = x * x;
  float p = 2.298941737e-03f;
  p = p * q + -8.350008302e-03f;
  p = p * q + 2.177099581e-02f;
  p = p * q + -5.395955029e-02f;
  p = p * q + 1.333330498e-01f;
  p = p * q + -3.333333318e-01f;
  const float near = (p * q) * x + x;
  const float e = exp_(-2.0f * abs_(x));
  // Not (1 - e) / (1 + e): near saturation derivatives live on the last bits of y, and here just one rounding is of y.
  const float far = copysign_(1.0f - 2.0f * e / (1.0f + e), x);
  return select(abs_(x) <= 0.625f, near, far);
}

FASTGAN_INLINE float erf_(float x) {
  const float q = x * x;
  float p = -9.641517800e-06f;
  p = p * q + 1.125694853e-04f;
  p = p * q + -8.482828933e-04f;
  p = p * q + 5.220945439e-03f;
  p = p * q + -2.686540004e-02f;
  p = p * q + 1.128378197e-01f;
  p = p * q + -3.761263843e-01f;
  p = p * q + 1.128379167e+00f;
  const float magnitude = abs_(x);
  const float t = select(magnitude > 4.0f, 4.0f, magnitude);  // erf(4) rounds to 1
  float u = -2.515864190e-07f;
  u = u * t + 2.531827431e-05f;
  u = u * t + -4.638078843e-04f;
  u = u * t + 4.282446545e-03f;
  u = u * t + -2.537368209e-02f;
  u = u * t + 1.086391549e-01f;
  u = u * t + 6.330394924e-01f;
  u = u * t + 1.129661209e+00f;
  u = u * t + -2.043694815e-04f;
  return select(magnitude <= 1.0f, p * x, copysign_(1.0f - exp_(-u), x));
}

// sigma(x) and sigma(-x) from one exponential of a negative number: neither overflows, neither cancels.
template <class C>
struct Sigmoids {
  C positive;     // sigma(x)
  C negative;     // sigma(-x) = 1 - sigma(x)
  C exponential;  // exp(-|x|)
};

template <class C>
FASTGAN_INLINE Sigmoids<C> sigmoids(C x) {
  const C e = exp_(-abs_(x));
  const C large = C(1) / (C(1) + e), small = e * large;
  return {select(x < C(0), small, large), select(x < C(0), large, small), e};
}

template <class C>
FASTGAN_INLINE C sigmoid_(C x) {
  return sigmoids(x).positive;
}

// log(1 + exp(x)) = max(x, 0) + log(1 + exp(-|x|)).
template <class C>
FASTGAN_INLINE C softplus_(C x) {
  return select(x < C(0), C(0), x) + log1p_unit(exp_(-abs_(x)));
}

}  // namespace fastgan
