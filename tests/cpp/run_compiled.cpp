// Runs a model that AOTInductor compiled, in a program without Python.
//   run_compiled MODEL INPUTS LIBRARY
// INPUTS: a list of tensors that torch.save wrote. LIBRARY: libhamfast.so. Prints the numbers of
// the third output, which of NequIP's target "ase" are the forces.
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  if (!dlopen(argv[3], RTLD_NOW | RTLD_GLOBAL)) {
    std::fprintf(stderr, "%s\n", dlerror());
    return 1;
  }
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::vector<at::Tensor> inputs;
  for (const auto& value : torch::pickle_load(bytes).toList())
    inputs.push_back(c10::IValue(value).toTensor());
  torch::inductor::AOTIModelPackageLoader loader(argv[1]);
  const at::Tensor forces = loader.run(inputs).at(2).contiguous();
  for (int64_t i = 0; i < forces.numel(); i++) std::printf("%.17g\n", forces.data_ptr<double>()[i]);
}
