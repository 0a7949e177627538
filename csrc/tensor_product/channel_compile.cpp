#include "common/kernel_sources.h"
#include "tensor_product/channel_jit.h"

namespace hamfast {

std::string compile_channel(const std::string& plan_header, int capability) {
  std::vector<jit::Header> headers = kernel_sources();
  headers.emplace_back("hamfast_plan.h", plan_header);
  return jit::compile_cached("#include \"channel.cuh\"\n", headers, capability);
}

}  // namespace hamfast
