#include "common/jit_c.h"

#include "common/jit.h"
#include "tensor_product/channel_jit.h"

namespace {

template <class F>
const char* sentence_of(F&& f) {
  static thread_local std::string text;
  text.clear();
  try {
    f();
  } catch (const std::exception& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace

extern "C" {

void hamfast_set_compiler(const char* path) { hamfast::jit::set_compiler_path(path); }

const char* hamfast_jit_problem() {
  return sentence_of([] {
    hamfast::jit::compiler_version();
    hamfast::jit::check_driver();
  });
}

const char* hamfast_jit_channel(const char* plan_header, int capability, int load) {
  return sentence_of([&] {
    const std::string image = hamfast::compile_channel(plan_header, capability);
    if (load) hamfast::jit::Kernel(image, hamfast::kChannelKernel);
  });
}

const char* hamfast_cache_folder() {
  static thread_local std::string text;
  text = hamfast::jit::cache_folder();
  return text.c_str();
}
}
