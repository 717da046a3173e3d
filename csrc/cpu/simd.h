// Loops compiled for several instruction sets in one portable binary and chosen at run time.
//
// A loop body is a FASTGAN_BODY lambda: always inlined, so it is compiled for the instruction set of the loop that it
// lands in. `simd_for` runs it for its effects, `simd_sum` adds up what it returns, in an order that depends on the
// length alone.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../core/scalar.h"
#include "targets.h"

#define FASTGAN_BODY(index) [=](int64_t index) __attribute__((always_inline))

namespace fastgan::cpu {

enum class Isa { baseline, avx2, avx512, neon };

// What this processor has, up to the FASTGAN_ISA environment variable (baseline, avx2, avx512, avx512_bf16, amx or
// neon). Asked once. The loops below are the same with NEON as without: any 64-bit ARM processor has it.
Isa isa();
const char* isa_name();

// The same of what multiplies bfloat16, beside AVX-512. AMX only where the kernel lets this process use it.
enum class Bf16Isa { none, avx512_bf16, amx };
Bf16Isa bf16_isa();
const char* bf16_isa_name();  // null for none

// Bodies are taken by value: what a lambda captured by reference to the caller's copy, the compiler would reload in
// each iteration and not vectorise.
namespace detail {

template <class Body>
FASTGAN_INLINE void for_loop(int64_t begin, int64_t end, Body body) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) body(i);
}

template <class C, class Body>
FASTGAN_INLINE C sum_loop(int64_t begin, int64_t end, Body body) {
  C sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = begin; i < end; ++i) sum += body(i);
  return sum;
}

#ifdef FASTGAN_X86
template <class Body>
FASTGAN_TARGET(FASTGAN_AVX2_FLAGS)
void for_avx2(int64_t begin, int64_t end, const Body& body) {
  for_loop(begin, end, body);
}
template <class Body>
FASTGAN_TARGET(FASTGAN_AVX512_FLAGS)
void for_avx512(int64_t begin, int64_t end, const Body& body) {
  for_loop(begin, end, body);
}
template <class C, class Body>
FASTGAN_TARGET(FASTGAN_AVX2_FLAGS)
C sum_avx2(int64_t begin, int64_t end, const Body& body) {
  return sum_loop<C>(begin, end, body);
}
template <class C, class Body>
FASTGAN_TARGET(FASTGAN_AVX512_FLAGS)
C sum_avx512(int64_t begin, int64_t end, const Body& body) {
  return sum_loop<C>(begin, end, body);
}
#endif

}  // namespace detail

template <class Body>
void simd_for(int64_t begin, int64_t end, const Body& body) {
#ifdef FASTGAN_X86
  if (isa() == Isa::avx512) return detail::for_avx512(begin, end, body);
  if (isa() == Isa::avx2) return detail::for_avx2(begin, end, body);
#endif
  detail::for_loop(begin, end, body);
}

template <class C, class Body>
C simd_sum(int64_t begin, int64_t end, const Body& body) {
#ifdef FASTGAN_X86
  if (isa() == Isa::avx512) return detail::sum_avx512<C>(begin, end, body);
  if (isa() == Isa::avx2) return detail::sum_avx2<C>(begin, end, body);
#endif
  return detail::sum_loop<C>(begin, end, body);
}

// Calls body with a number: the bytes of a vector of the instruction set that it is compiled for. For what is more than
// one loop: body is a generic lambda, FASTGAN_VECTOR_BODY(bytes).
#define FASTGAN_VECTOR_BODY(bytes) [&](auto bytes) __attribute__((always_inline))

template <int bytes>
using VectorBytes = std::integral_constant<int, bytes>;

#ifdef FASTGAN_X86
namespace detail {

template <class Body>
FASTGAN_TARGET(FASTGAN_AVX2_FLAGS)
void with_avx2(const Body& body) {
  body(VectorBytes<32>());
}
template <class Body>
FASTGAN_TARGET(FASTGAN_AVX512_FLAGS)
void with_avx512(const Body& body) {
  body(VectorBytes<64>());
}

}  // namespace detail
#endif

template <class Body>
void with_vectors(const Body& body) {
#ifdef FASTGAN_X86
  if (isa() == Isa::avx512) return detail::with_avx512(body);
  if (isa() == Isa::avx2) return detail::with_avx2(body);
#endif
  body(VectorBytes<16>());
}

}  // namespace fastgan::cpu
