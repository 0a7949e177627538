// hamfast._native: everything in C++ that is not a tensor op. It belongs to one Python version; the
// ops do not.
#include <pybind11/pybind11.h>

#include "common/info.h"

PYBIND11_MODULE(_native, m) {
  m.doc() = "Build information and processor features of hamfast's compiled library.";
  m.def("version", &hamfast_version, "Version of the compiled library.");
  m.def("compiler", &hamfast_compiler, "C++ compiler that built it.");
  m.def("cuda_architectures", &hamfast_cuda_architectures,
        "Architectures of its CUDA kernels, '' if there are none.");
  m.def("isa", &hamfast_isa,
        "Instruction set of the CPU kernels on this machine: baseline, avx2 or avx512.");
}
