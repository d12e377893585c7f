// Runs a model without Python. torch._inductor.aoti_compile_and_package writes such a model:
//   run model.pt2 input.pt output.pt
// input.pt is a file with one tensor, written by torch.save; the program writes output.pt in the
// same format.
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/serialize.h>

#include <fstream>
#include <iostream>
#include <iterator>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: run MODEL.pt2 INPUT.pt OUTPUT.pt\n";
    return 2;
  }
  const c10::InferenceMode no_grad;
  std::ifstream file(argv[2], std::ios::binary);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const at::Tensor input = torch::pickle_load(bytes).toTensor();

  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  const std::vector<at::Tensor> outputs = model.run({input});

  const std::vector<char> result = torch::pickle_save(outputs.at(0));
  std::ofstream(argv[3], std::ios::binary).write(result.data(), result.size());
  std::cout << "output " << outputs.at(0).sizes() << "\n";
}
