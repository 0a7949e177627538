/* A CUDA driver without a GPU: loads anything, or fails with the error in STUB_ERROR. OLD: one from before CUDA 12. */
#include <stdlib.h>

int cuDriverGetVersion(int* version) {
#ifdef OLD
  *version = 11040;
#else
  *version = 13000;
#endif
  return 0;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 222 ? "the provided PTX was compiled with an unsupported toolchain." : "unknown error";
  return 0;
}
int cuLaunchKernel(void* f, unsigned a, unsigned b, unsigned c, unsigned d, unsigned e, unsigned g, unsigned h, void* s,
                   void** p, void** x) {
  return 0;
}
#ifndef OLD
int cuLibraryLoadData(void** library, const void* code, void* o, void** v, unsigned n, void* lo, void** lv,
                      unsigned m) {
  const char* error = getenv("STUB_ERROR");
  return error ? atoi(error) : 0;
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) { return 0; }
int cuCtxGetDevice(int* device) { return 0; }
int cuKernelSetAttribute(int attribute, int value, void* kernel, int device) { return 0; }
#endif
