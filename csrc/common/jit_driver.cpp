#include <dlfcn.h>

#include "common/jit.h"

namespace hamfast::jit {
namespace {

// The driver's functions, as its header declares them (CUDA 12).
struct Driver {
  int (*version)(int*);
  int (*error_string)(int, const char**);
  int (*load)(void**, const void*, void*, void**, unsigned, void*, void**, unsigned);
  int (*get_kernel)(void**, void*, const char*);
  int (*current_device)(int*);
  int (*set_attribute)(int, int, void*, int);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*,
                void**, void**);
};

const Driver& driver() {
  static std::string failure;
  static const Driver functions = [] {
    Driver f{};
    void* library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) {
      failure = "there is no NVIDIA driver: libcuda.so.1 was not found";
      return f;
    }
    auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    };
    find(f.version, "cuDriverGetVersion");
    find(f.error_string, "cuGetErrorString");
    find(f.load, "cuLibraryLoadData");
    find(f.get_kernel, "cuLibraryGetKernel");
    find(f.current_device, "cuCtxGetDevice");
    find(f.set_attribute, "cuKernelSetAttribute");
    find(f.launch, "cuLaunchKernel");
    int version = 0;
    if (f.version) f.version(&version);
    if (!f.version || !f.error_string || !f.load || !f.get_kernel || !f.set_attribute ||
        !f.current_device || !f.launch)
      failure = "the NVIDIA driver is too old: it is for CUDA " + std::to_string(version / 1000) +
                "." + std::to_string(version % 1000 / 10) +
                ", and kernels compiled at run time need one for CUDA 12.0 or later";
    return f;
  }();
  if (!failure.empty()) throw Error(failure);
  return functions;
}

void check(int status, const std::string& what) {
  if (status == 0) return;
  const char* text = nullptr;
  driver().error_string(status, &text);
  const std::string reason = text ? text : "error " + std::to_string(status);
  int version = 0;
  driver().version(&version);
  constexpr int kOutOfMemory = 2, kNoBinaryForGpu = 209, kInvalidImage = 200, kUnsupportedPtx = 222;
  if (status == kOutOfMemory) throw Error(what + ": the GPU is out of memory");
  if (status == kNoBinaryForGpu || status == kInvalidImage || status == kUnsupportedPtx)
    throw Error(what + ": the driver (for CUDA " + std::to_string(version / 1000) + "." +
                std::to_string(version % 1000 / 10) + ") cannot load what NVRTC " +
                std::to_string(compiler_version() / 1000) + "." +
                std::to_string(compiler_version() % 1000 / 10) + " made (" + reason +
                "); update the driver, or install an older nvidia-cuda-nvrtc");
  throw Error(what + ": " + reason);
}

}  // namespace

void check_driver() { driver(); }

Kernel::Kernel(const std::string& image, const char* name) : name_(name) {
  void* library = nullptr;  // stays loaded: kernels live as long as the process
  check(driver().load(&library, image.data(), nullptr, nullptr, 0, nullptr, nullptr, 0),
        name_ + " was not loaded");
  check(driver().get_kernel(&kernel_, library, name), name_ + " was not found");
}

void Kernel::launch(unsigned blocks, unsigned threads, unsigned shared_bytes, void* stream,
                    void** parameters) const {
  constexpr unsigned kWithoutAsking = 48 << 10;
  constexpr int kMaxDynamicSharedSizeBytes = 8;
  if (shared_bytes > kWithoutAsking) {
    int device = 0;
    check(driver().current_device(&device), name_ + " was not launched");
    check(driver().set_attribute(kMaxDynamicSharedSizeBytes, static_cast<int>(shared_bytes),
                                 kernel_, device),
          name_ + " was not launched");
  }
  check(driver().launch(kernel_, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, parameters,
                        nullptr),
        name_ + " was not launched");
}

}  // namespace hamfast::jit
