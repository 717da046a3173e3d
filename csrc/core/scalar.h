// Scalar types and conversions, shared by host and device. Loads widen to the type that arithmetic is done in (float
// for the 16-bit formats), stores round back to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(FASTGAN_INLINE)  // given by a build that counts branches, each once and not once a place it is inlined at
#elif defined(__CUDACC__)
#define FASTGAN_INLINE __host__ __device__ __forceinline__
#else
// Always inlined: so a function of core/ is compiled for the instruction set of the loop that it lands in.
#define FASTGAN_INLINE inline __attribute__((always_inline))
#endif

// Calls X with each type of elements.
#define FASTGAN_EACH_FLOATING(X) X(float) X(double) X(bfloat16) X(float16)

// A list of kinds is a macro that calls X(name) with each: its enumeration and their names are made of it.
#define FASTGAN_ENUMERATOR(name) name,
#define FASTGAN_NAME(name) #name,

namespace fastgan {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// The type that arithmetic on values stored as T is done in.
template <class T>
struct compute_type {
  using type = T;
};
template <>
struct compute_type<bfloat16> {
  using type = float;
};
template <>
struct compute_type<float16> {
  using type = float;
};
template <class T>
using compute_t = typename compute_type<T>::type;

FASTGAN_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

FASTGAN_INLINE float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

FASTGAN_INLINE float load(const float* p) { return *p; }
FASTGAN_INLINE double load(const double* p) { return *p; }

FASTGAN_INLINE float load(const bfloat16* p) { return float_of(uint32_t(p->bits) << 16); }

FASTGAN_INLINE void store(float* p, float value) { *p = value; }
FASTGAN_INLINE void store(double* p, double value) { *p = value; }

#if defined(__CUDA_ARCH__)

// The conversions of the hardware.
FASTGAN_INLINE float load(const float16* p) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(p->bits));
  return value;
}
FASTGAN_INLINE void store(bfloat16* p, float value) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(p->bits) : "f"(value)); }
FASTGAN_INLINE void store(float16* p, float value) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(p->bits) : "f"(value)); }

#else

// Branch-free, so that loops over it vectorise, and without subnormal floats, which a processor may be told to flush to
// zero: the exponent is moved by an addition; a subnormal half is a normal float's distance from the smallest normal
// half; infinity and NaN keep their mantissa under float's largest exponent.
FASTGAN_INLINE float load(const float16* p) {
  const uint32_t sign = uint32_t(p->bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(p->bits & 0x7fffu) << 13;
  const uint32_t normal = magnitude + 0x38000000u;  // 112 exponents, the difference of the biases
  const uint32_t subnormal = bits_of(float_of(magnitude + 0x38800000u) - float_of(0x38800000u));
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t finite = magnitude < 0x00800000u ? subnormal : normal;
  return float_of(sign | (magnitude >= 0x0f800000u ? special : finite));
}

FASTGAN_INLINE void store(bfloat16* p, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = uint16_t(value != value ? 0x7fc0u : rounded);
}

// Adding a power of two that leaves just the bits of a half in the mantissa makes float addition do the rounding, for
// normal and subnormal halves alike.
FASTGAN_INLINE void store(float16* p, float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t exponent = magnitude & 0x7f800000u;
  const uint32_t smallest = exponent < 0x38800000u ? 0x38800000u : exponent;  // 2^-14, the smallest normal half
  const float anchor = float_of(smallest + 0x06800000u);                      // 2^13 times that
  const uint32_t rounded = bits_of(float_of(magnitude) + anchor) - bits_of(anchor);
  const uint32_t half = ((smallest - 0x38800000u) >> 13) + rounded;
  const uint32_t nan_or_inf = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  p->bits = uint16_t(sign | (magnitude >= 0x47800000u || half >= 0x7c00u ? nan_or_inf : half));
}

#endif

}  // namespace fastgan
