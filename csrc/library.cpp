// Declares every op of hamfast. Kernels register themselves beside their code; fakes and autograd
// are in hamfast/ops/.
#include <torch/csrc/stable/library.h>

#include "common/op_records.h"

STABLE_TORCH_LIBRARY(hamfast, m) {
  for (const char* schema : hamfast::kSchemas) m.def(schema);
}
