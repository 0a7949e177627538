// kernels/channel.cuh for one plan, as a library for the host: see jit.cpp.
#include "channel.cuh"

extern "C" __attribute__((visibility("default"))) void run_on_host(unsigned blocks,
                                                                   unsigned shared_bytes,
                                                                   void** parameters) {
  using namespace hamfast::channel;
  simt::launch({blocks}, {hamfast::kWarp * kWarpsPerBlock}, shared_bytes, simt::seed(),
               hamfast_channel, *static_cast<const Arguments*>(parameters[0]));
}
