// All that a launcher knows of CUDA: the current stream without a link to libtorch_cuda, and a
// checked launch. tests/simt/common/cuda_launch.h has the same names: with it, the *_cuda.cu files
// run on the host.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/dispatch.h"

#define HAMFAST_CUDA_KEY CUDA

namespace hamfast {

using LaunchGuard = torch::stable::accelerator::DeviceGuard;

struct Grid {
  int64_t x = 1, y = 1;
  int64_t shared_bytes = 0;  // dynamic shared memory of a block
};

// torch 2.13 has Stream::nativeHandle; our floor is 2.11, where the C shim of libtorch_cuda gives
// the stream. It is looked up when first needed, so that this library also loads into CPU builds of
// torch, which lack it.
inline cudaStream_t current_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<GetStream>(symbol);
  }();
  STD_TORCH_CHECK(get != nullptr,
                  "hamfast: this build of torch has no CUDA (aoti_torch_get_current_cuda_stream)");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "hamfast: no current CUDA stream on device ", device);
  return static_cast<cudaStream_t>(stream);
}

constexpr int64_t kPlainShared = 48 << 10;  // what a kernel may have without asking for it

// kernel<<<grid, threads>>>(arguments...) on the device's current stream.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), Grid grid, int threads, int32_t device,
            const Arguments&... arguments) {
  cudaError_t error = cudaSuccess;
  if (grid.shared_bytes > kPlainShared)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(grid.shared_bytes));
  if (error == cudaSuccess) {
    kernel<<<dim3(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y)), threads,
             static_cast<size_t>(grid.shared_bytes), current_stream(device)>>>(arguments...);
    error = cudaGetLastError();
  }
  STD_TORCH_CHECK(error == cudaSuccess, op, ": kernel launch failed: ", cudaGetErrorString(error));
}

// 90 for compute capability 9.0.
inline int capability_of(int32_t device) {
  int major = 0, minor = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return 10 * major + minor;
}

}  // namespace hamfast
