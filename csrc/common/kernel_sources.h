// The files of kernels/ that are compiled at run time, as CMake put them into the library.
#pragma once

#include "common/jit.h"

namespace hamfast {

std::vector<jit::Header> kernel_sources();

}  // namespace hamfast
