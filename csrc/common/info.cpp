// What was built, as plain C symbols: the pybind11 module and any other program can read them.
#include "common/info.h"

#include "common/isa.h"

extern "C" {
const char* hamfast_version() { return HAMFAST_VERSION; }
const char* hamfast_compiler() { return __VERSION__; }
const char* hamfast_cuda_architectures() { return HAMFAST_CUDA_ARCHITECTURES; }
const char* hamfast_isa() { return hamfast::isa_name(hamfast::chosen_isa()); }
}
