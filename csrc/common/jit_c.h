// Run-time compilation for callers that are not C++: hamfast/run_time_compiler.py. Errors are
// sentences, "" if none; they live until the thread's next call.
#pragma once

#define HAMFAST_EXPORT __attribute__((visibility("default")))

extern "C" {
// Where NVRTC may lie, besides where the loader looks.
HAMFAST_EXPORT void hamfast_set_compiler(const char* path);
// Why no kernel can be compiled or loaded.
HAMFAST_EXPORT const char* hamfast_jit_problem();
// Compiles kernels/channel.cuh for a plan (its header, as channel_kernel_source gives it) into the
// cache; loads it, too, if asked to.
HAMFAST_EXPORT const char* hamfast_jit_channel(const char* plan_header, int capability, int load);
HAMFAST_EXPORT const char* hamfast_cache_folder();
}
