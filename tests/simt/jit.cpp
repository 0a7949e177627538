// In place of csrc/common/jit_*.cpp: the host's compiler makes a library of kernels/channel.cuh and
// a plan, which runs on the executor. HAMFAST_SIMT_COMPILE: the command, without files;
// HAMFAST_SIMT_FOLDER: where the libraries go.
#include "common/jit.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "tensor_product/channel_jit.h"

namespace hamfast {

namespace jit {

using Run = void (*)(unsigned blocks, unsigned shared_bytes, void** parameters);

Kernel::Kernel(const std::string& image, const char*) {
  void* library = dlopen(image.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Error(dlerror());
  kernel_ = dlsym(library, "run_on_host");
}

void Kernel::launch(unsigned blocks, unsigned, unsigned shared_bytes, void*,
                    void** parameters) const {
  reinterpret_cast<Run>(kernel_)(blocks, shared_bytes, parameters);
}

}  // namespace jit

std::string compile_channel(const std::string& plan_header, int) {
  const char *command = std::getenv("HAMFAST_SIMT_COMPILE"),
             *folder = std::getenv("HAMFAST_SIMT_FOLDER");
  const std::string name = std::to_string(std::hash<std::string>{}(plan_header));
  const std::string own = std::string(folder) + "/" + name, library = own + "/kernel.so";
  if (access(library.c_str(), R_OK) == 0) return library;
  if (std::system(("mkdir -p " + own).c_str()) != 0) throw jit::Error("no folder " + own);
  std::ofstream(own + "/hamfast_plan.h") << plan_header;
  if (std::system((std::string(command) + " -shared -fPIC -I" + own + " -o " + library).c_str()) !=
      0)
    throw jit::Error("no kernel for " + own);
  return library;
}

}  // namespace hamfast
