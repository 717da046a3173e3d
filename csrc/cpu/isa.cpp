#include <cstdlib>
#include <string>

#include "simd.h"

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
    default:
      return "baseline";
  }
}

}  // namespace fastgan::cpu
