// The instruction sets that loops and kernels are compiled for, as the compiler is told of them: here alone.
#pragma once

// Clang knows no `GCC target` for the rest of a file: what it builds for x86-64 has the baseline alone.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FASTGAN_X86 1
#define FASTGAN_AVX2_FLAGS "avx2,fma"
#define FASTGAN_AVX512_FLAGS "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#if __GNUC__ >= 11
#define FASTGAN_AVX512_BF16 1
#define FASTGAN_AVX512_BF16_FLAGS FASTGAN_AVX512_FLAGS ",avx512bf16"
#if defined(__linux__)
#define FASTGAN_AMX 1
#define FASTGAN_AMX_FLAGS FASTGAN_AVX512_BF16_FLAGS ",amx-tile,amx-bf16"
#endif
#endif
#endif

// Part of every 64-bit ARM: the compiler need not be told of it.
#if defined(__aarch64__) && defined(__GNUC__)
#define FASTGAN_NEON 1
#endif

// Of one function; and of all that follows in a file.
#define FASTGAN_TARGET(flags) __attribute__((target(flags)))
#define FASTGAN_PRAGMA(text) _Pragma(#text)
#define FASTGAN_TARGET_FROM_HERE(flags) FASTGAN_PRAGMA(GCC target(flags))
