#pragma once

#include "common/isa.h"
#include "tensor_product/channel_call.h"

// One thread's share. forward: dF/dg of output rows [begin, end). backward: dF/dx, dF/dy, dF/dw of
// rows [begin, end) by sender. prepare: rows [begin, end) of x or g as padded blocks.
#define HAMFAST_DECLARE_FOR(T)                                                                 \
  void channel_forward(const ChannelCall<T>& call, int64_t begin, int64_t end, T* scratch);    \
  void channel_backward(const ChannelCall<T>& call, int64_t begin, int64_t end, int64_t chunk, \
                        T* scratch);                                                           \
  void channel_prepare(const ChannelCall<T>& call, bool is_g, const void* rows, int64_t begin, \
                       int64_t end, T* out, T* scratch);
HAMFAST_FOR_EACH_ISA(HAMFAST_DECLARE_IN)
#undef HAMFAST_DECLARE_FOR
