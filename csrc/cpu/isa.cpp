#include <cstdlib>
#include <string>

#include "simd.h"

#ifdef FASTGAN_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastgan::cpu {

namespace {

Isa supported() {
#ifdef FASTGAN_X86
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return Isa::baseline;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return Isa::avx512;
  return Isa::avx2;
#elif defined(FASTGAN_NEON)
  return Isa::neon;
#else
  return Isa::baseline;
#endif
}

std::string wished() {
  const char* variable = std::getenv("FASTGAN_ISA");
  return variable ? variable : "";
}

Isa chosen() {
  const std::string wish = wished();
  const Isa best = supported();
  if (wish == "baseline") return Isa::baseline;
  return wish == "avx2" && best == Isa::avx512 ? Isa::avx2 : best;
}

#ifdef FASTGAN_AVX512_BF16
bool amx_supported() {
#ifdef FASTGAN_AMX
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;  // amx-bf16, amx-tile
  // Linux grants the tile registers' state on request: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}
#endif

Bf16Isa bf16_chosen() {
#ifdef FASTGAN_AVX512_BF16
  const std::string wish = wished();
  if (isa() != Isa::avx512 || wish == "avx512" || !__builtin_cpu_supports("avx512bf16")) return Bf16Isa::none;
  return wish != "avx512_bf16" && amx_supported() ? Bf16Isa::amx : Bf16Isa::avx512_bf16;
#else
  return Bf16Isa::none;
#endif
}

}  // namespace

Isa isa() {
  static const Isa value = chosen();
  return value;
}

const char* isa_name() {
  switch (isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    case Isa::neon:
      return "neon";
    case Isa::baseline:
      break;
  }
  return "baseline";
}

Bf16Isa bf16_isa() {
  static const Bf16Isa value = bf16_chosen();
  return value;
}

const char* bf16_isa_name() {
  switch (bf16_isa()) {
    case Bf16Isa::amx:
      return "amx";
    case Bf16Isa::avx512_bf16:
      return "avx512_bf16";
    case Bf16Isa::none:
      break;
  }
  return nullptr;
}

}  // namespace fastgan::cpu
