// The instruction sets the CPU kernels are compiled for, and the choice at run time.
#pragma once

// CMake compiles every *_isa.cpp once per instruction set, with HAMFAST_ISA naming the namespace.
#if defined(HAMFAST_X86)
#define HAMFAST_FOR_EACH_ISA(DECLARE) DECLARE(baseline) DECLARE(avx2) DECLARE(avx512)
#else
#define HAMFAST_FOR_EACH_ISA(DECLARE) DECLARE(baseline)
#endif

// For HAMFAST_FOR_EACH_ISA: what a header's own HAMFAST_DECLARE_FOR(T) declares, for both types, in
// the set's namespace.
#define HAMFAST_DECLARE_IN(ISA) \
  namespace hamfast::ISA {      \
  HAMFAST_DECLARE_FOR(float)    \
  HAMFAST_DECLARE_FOR(double)   \
  }

namespace hamfast {

enum class Isa { baseline, avx2, avx512 };

// The best one this processor runs, or the one named by the environment variable HAMFAST_ISA if
// that is lower.
Isa chosen_isa();
const char* isa_name(Isa isa);

}  // namespace hamfast

// HAMFAST_ISA_CALL(f, args): namespace::f(args) of the chosen instruction set.
#if defined(HAMFAST_X86)
#define HAMFAST_ISA_CALL(function, ...)                                                         \
  (::hamfast::chosen_isa() == ::hamfast::Isa::avx512 ? ::hamfast::avx512::function(__VA_ARGS__) \
   : ::hamfast::chosen_isa() == ::hamfast::Isa::avx2 ? ::hamfast::avx2::function(__VA_ARGS__)   \
                                                     : ::hamfast::baseline::function(__VA_ARGS__))
#else
#define HAMFAST_ISA_CALL(function, ...) (::hamfast::baseline::function(__VA_ARGS__))
#endif
