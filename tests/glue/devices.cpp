// A native op on a machine that seems to have cards: test_devices.py calls it with tensors of the CPU, which this
// library takes to be on cuda:<size of dimension 0>. It is linked with -Bsymbolic, so that two functions of PyTorch's
// are its own.
#define AIGC_BACKEND_NONE
#include "glue/backend.h"

extern "C" {
AOTITorchError aoti_torch_get_device_type(AtenTensorHandle, int32_t* type) {
  *type = aoti_torch_device_type_cuda();
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_device_index(AtenTensorHandle tensor, int32_t* index) {
  int64_t* sizes = nullptr;
  const AOTITorchError error = aoti_torch_get_sizes(tensor, &sizes);
  *index = static_cast<int32_t>(sizes[0]);
  return error;
}
}

namespace aigc {
namespace {

int64_t tensors_of(const torch::stable::Tensor& /*x*/, std::optional<torch::stable::Tensor> b,
                   std::vector<torch::stable::Tensor> list) {
  return 1 + b.has_value() + static_cast<int64_t>(list.size());
}

}  // namespace

AIGC_SCHEMAS(library) { library.def("tensors_of(Tensor x, Tensor? b, Tensor[] list) -> int"); }

STABLE_TORCH_LIBRARY(aigc_devices, library) { aigc_schemas(library); }
STABLE_TORCH_LIBRARY_IMPL(aigc_devices, CPU, library) { AIGC_BIND(library, "tensors_of", tensors_of); }

}  // namespace aigc
