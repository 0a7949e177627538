#include <dlfcn.h>

#include "common/jit.h"

namespace hamfast::jit {
namespace {

// NVRTC's functions, as its header declares them.
struct Nvrtc {
  using Program = void*;
  int (*version)(int*, int*);
  const char* (*error_string)(int);
  int (*num_archs)(int*);
  int (*archs)(int*);
  int (*create)(Program*, const char*, const char*, int, const char* const*, const char* const*);
  int (*compile)(Program, int, const char* const*);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*cubin_size)(Program, size_t*);
  int (*cubin)(Program, char*);
  int (*ptx_size)(Program, size_t*);
  int (*ptx)(Program, char*);
  int (*destroy)(Program*);
};

std::string compiler_path;  // NOLINT: set once, when the package is loaded

// The compiler's own library of built-ins must be there before it: it looks for it by name alone.
void open_builtins(const std::string& path) {
  const size_t slash = path.rfind('/'),
               name = path.find("libnvrtc", slash == std::string::npos ? 0 : slash);
  const size_t so = path.find(".so", name);
  if (slash == std::string::npos || so == std::string::npos) return;
  const std::string folder = path.substr(0, slash + 1), version = path.substr(so + 3);  // ".13"
  for (int minor = 0; minor < 20; ++minor) {
    const std::string builtins =
        folder + "libnvrtc-builtins.so" + version + "." + std::to_string(minor);
    if (dlopen(builtins.c_str(), RTLD_NOW | RTLD_GLOBAL)) return;
  }
}

void* open_compiler(std::string& tried) {
  if (!compiler_path.empty()) {
    open_builtins(compiler_path);
    if (void* found = dlopen(compiler_path.c_str(), RTLD_NOW)) return found;
    tried = dlerror();
  }
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"})
    if (void* found = dlopen(name, RTLD_NOW)) return found;
  return nullptr;
}

const Nvrtc& nvrtc() {
  static std::string failure;
  static const Nvrtc functions = [] {
    Nvrtc f{};
    std::string tried;
    void* library = open_compiler(tried);
    if (!library) {
      failure = "no run-time compiler: NVRTC was not found (" +
                (tried.empty() ? "libnvrtc.so.13 or .12" : tried) +
                "); `pip install nvidia-cuda-nvrtc` brings it";
      return f;
    }
    auto find = [&](auto& function, const char* name) {
      function =
          reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
      if (!function)
        failure = std::string("the run-time compiler is too old: NVRTC has no ") + name +
                  "; 12.0 is needed";
    };
    find(f.version, "nvrtcVersion");
    find(f.error_string, "nvrtcGetErrorString");
    find(f.num_archs, "nvrtcGetNumSupportedArchs");
    find(f.archs, "nvrtcGetSupportedArchs");
    find(f.create, "nvrtcCreateProgram");
    find(f.compile, "nvrtcCompileProgram");
    find(f.log_size, "nvrtcGetProgramLogSize");
    find(f.log, "nvrtcGetProgramLog");
    find(f.cubin_size, "nvrtcGetCUBINSize");
    find(f.cubin, "nvrtcGetCUBIN");
    find(f.ptx_size, "nvrtcGetPTXSize");
    find(f.ptx, "nvrtcGetPTX");
    find(f.destroy, "nvrtcDestroyProgram");
    return f;
  }();
  if (!failure.empty()) throw Error(failure);
  return functions;
}

void check(const Nvrtc& f, int status, const char* what) {
  if (status != 0)
    throw Error(std::string("the run-time compiler failed in ") + what + ": " +
                f.error_string(status));
}

// The newest target of the compiler that this GPU can run: its own generation's machine code, else
// older PTX.
std::string target_of(const Nvrtc& f, int capability) {
  int count = 0;
  check(f, f.num_archs(&count), "nvrtcGetNumSupportedArchs");
  std::vector<int> archs(count);
  check(f, f.archs(archs.data()), "nvrtcGetSupportedArchs");
  int best = 0, oldest = archs.empty() ? 0 : archs[0];
  for (const int arch : archs) {
    if (arch <= capability && arch > best) best = arch;
    if (arch < oldest) oldest = arch;
  }
  if (best == 0)
    throw Error("GPU architecture sm_" + std::to_string(capability) +
                " is not supported: this NVRTC compiles for sm_" + std::to_string(oldest) +
                " and later");
  return (best / 10 == capability / 10 ? "sm_" : "compute_") + std::to_string(best);
}

}  // namespace

void set_compiler_path(const std::string& path) { compiler_path = path; }

int compiler_version() {
  const Nvrtc& f = nvrtc();
  int major = 0, minor = 0;
  check(f, f.version(&major, &minor), "nvrtcVersion");
  return 1000 * major + 10 * minor;
}

std::string compile(const std::string& source, const std::vector<Header>& headers, int capability) {
  const Nvrtc& f = nvrtc();
  std::vector<const char*> names, texts;
  for (const Header& header : headers) {
    names.push_back(header.first.c_str());
    texts.push_back(header.second.c_str());
  }
  Nvrtc::Program program = nullptr;
  const int count = static_cast<int>(headers.size());
  check(f, f.create(&program, source.c_str(), "hamfast.cu", count, texts.data(), names.data()),
        "nvrtcCreateProgram");
  const std::string target = target_of(f, capability),
                    architecture = "--gpu-architecture=" + target;
  const char* options[] = {architecture.c_str(), "--std=c++20", "-default-device"};
  const int status = f.compile(program, 3, options);
  std::string result;
  if (status != 0) {
    size_t size = 0;
    f.log_size(program, &size);
    std::string log(size, '\0');
    f.log(program, log.data());
    f.destroy(&program);
    throw Error("a kernel did not compile for " + target + ": " + log.substr(0, 2000));
  }
  const bool machine_code = target[0] == 's';
  size_t size = 0;
  check(f, machine_code ? f.cubin_size(program, &size) : f.ptx_size(program, &size),
        "nvrtcGetCUBINSize");
  result.resize(size);
  check(f, machine_code ? f.cubin(program, result.data()) : f.ptx(program, result.data()),
        "nvrtcGetCUBIN");
  f.destroy(&program);
  return result;
}

}  // namespace hamfast::jit
