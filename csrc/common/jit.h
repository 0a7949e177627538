// Kernels compiled at run time, for one plan each: NVRTC (opened when first needed, from the wheel
// that CUDA builds of torch depend on), a cache of what it made on disk, and the driver that loads
// it. No CUDA header, no link to CUDA.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace hamfast::jit {

// What a user can do something about, in one sentence.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where NVRTC may lie, besides where the loader looks: a file, or "".
void set_compiler_path(const std::string& path);

// Major and minor version of NVRTC, 1000 major + 10 minor. Throws Error if there is none.
int compiler_version();

using Header = std::pair<std::string, std::string>;  // name, text

// Machine code (or PTX, for GPUs newer than the compiler) of `source` for compute capability
// `capability` (90: 9.0).
std::string compile(const std::string& source, const std::vector<Header>& headers, int capability);

// The same, from the cache if it is there. A cache that cannot be used costs a notice, once, and
// nothing else.
std::string compile_cached(const std::string& source, const std::vector<Header>& headers,
                           int capability);

// $HAMFAST_CACHE, $XDG_CACHE_HOME/hamfast or ~/.cache/hamfast; "" if there is no such place.
std::string cache_folder();

// Throws Error if there is no driver, or one too old to load kernels.
void check_driver();

// A loaded kernel, for every context of the process.
class Kernel {
 public:
  Kernel(const std::string& image, const char* name);
  // `parameters`: pointers to the arguments. The current device's context; `stream`: a CUstream.
  void launch(unsigned blocks, unsigned threads, unsigned shared_bytes, void* stream,
              void** parameters) const;

 private:
  void* kernel_ = nullptr;
  std::string name_;
};

}  // namespace hamfast::jit
