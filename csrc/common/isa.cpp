#include "common/isa.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>

namespace hamfast {

static Isa detect() {
  Isa best = Isa::baseline;
#if defined(HAMFAST_X86)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) best = Isa::avx2;
  if (best == Isa::avx2 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw"))
    best = Isa::avx512;
#endif
  if (const char* wanted = std::getenv("HAMFAST_ISA")) {
    for (Isa isa : {Isa::baseline, Isa::avx2, Isa::avx512})
      if (std::strcmp(wanted, isa_name(isa)) == 0 && isa < best) best = isa;
  }
  return best;
}

Isa chosen_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace hamfast
