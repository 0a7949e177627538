// What was built and what this processor runs. Strings live as long as the library.
#pragma once

extern "C" {
__attribute__((visibility("default"))) const char* hamfast_version();
__attribute__((visibility("default"))) const char* hamfast_compiler();
// Architectures of the CUDA kernels, "80,90"; empty when they were not compiled.
__attribute__((visibility("default"))) const char* hamfast_cuda_architectures();
// The instruction set the CPU kernels use on this machine.
__attribute__((visibility("default"))) const char* hamfast_isa();
}
