// What every CUDA launcher needs: the current stream without a link to libtorch_cuda, and a checked launch.
#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "common/dispatch.h"

namespace hamfast {

// torch 2.13 has Stream::nativeHandle; our floor is 2.11, where the C shim of libtorch_cuda gives the stream. It is
// looked up when first needed, so that this library also loads into CPU builds of torch, which lack it.
inline cudaStream_t current_stream(int32_t device) {
  using GetStream = int32_t (*)(int32_t, void**);
  static const GetStream get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<GetStream>(symbol);
  }();
  STD_TORCH_CHECK(get != nullptr, "hamfast: this build of torch has no CUDA (aoti_torch_get_current_cuda_stream)");
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "hamfast: no current CUDA stream on device ", device);
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, op, ": kernel launch failed: ", cudaGetErrorString(error));
}

constexpr int kWarp = 32;
constexpr int64_t kMaxBlocks = 1 << 16;

// One warp per block; blocks walk over the rows with stride gridDim.x.
inline unsigned blocks_for(int64_t rows) { return static_cast<unsigned>(rows < kMaxBlocks ? rows : kMaxBlocks); }

}  // namespace hamfast
