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
#else
  return Isa::baseline;
#endif
}

Isa chosen() {
  const char* variable = std::getenv("FASTGAN_ISA");
  const std::string wish = variable ? variable : "";
  const Isa limit = wish == "baseline" ? Isa::baseline : wish == "avx2" ? Isa::avx2 : Isa::avx512;
  const Isa best = supported();
  return best < limit ? best : limit;
}

bool amx_supported() {
#ifdef FASTGAN_AMX
  unsigned a, b, c, d;
  if (isa() != Isa::avx512 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;                       // amx-bf16, amx-tile
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || (a >> 5 & 1) == 0) return false;  // avx512_bf16
  // Linux grants the tile registers' state on request: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILEDATA.
  return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
  return false;
#endif
}

}  // namespace

bool has_amx() {
  static const bool value = amx_supported();
  return value;
}

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
    case Isa::baseline:
      break;
  }
  return "baseline";
}

}  // namespace fastgan::cpu
