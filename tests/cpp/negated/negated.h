// y = -x: an op without a CUDA kernel, for tests/cpp/test_cpu_only_op.py.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct NegatedParams {
  DType dtype = DType::float32;
  const void* x = nullptr;
  void* y = nullptr;
};

}  // namespace aigc

AIGC_KERNEL(negated_elements, NegatedParams)  // items: elements
