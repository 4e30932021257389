// A linear layer with its activation, for a few rows, each of which comes out the same whatever the others are
// and however many there are:
//
//     y(i, j) = gain f(sum over k of x(i, k) w(j, k) + b(j))
//
// Each element is a sum of its own, in an order that depends on the number of features alone: lane l of a
// vector adds the features l, l + width, ..., and then the lanes are added up in pairs. One piece of code
// computes every row. (PyTorch's product, and core/matmul.h, are faster for many rows. The first rounds a row
// differently in batches of different sizes; the second first transposes the weights.)
#pragma once

#include "core/activation.h"
#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct LinearRowsParams {
  static constexpr int64_t kColumns = 16;  // an item is so many columns of y
  static constexpr double clamp = -1;      // there is none

  DType dtype = DType::float32;  // float32 or float64
  Act act = Act::linear;
  double alpha = 0, gain = 1;
  int64_t rows = 0, in_features = 0, out_features = 0;
  // All dense.
  const void* x = nullptr;
  const void* w = nullptr;
  const void* b = nullptr;
  void* y = nullptr;
};

}  // namespace aigc

AIGC_KERNEL(linear_rows, LinearRowsParams)  // items: groups of columns
