// A training step of a GAN whose two networks are chains of linear layers with activations, without autograd:
// the discriminator's half, then the generator's. It is for the CPU only.
//
// A layer, for one sample in each row:
//     z = h_below W^T + b      h = f(z)      d = f'(z)      d2 = f''(z)
// of which h, d and d2 are kept. All gradients are then products and multiplications:
//     dz = dh * d        db = sum of dz over the rows        dh_below = dz W        dW = dz^T h_below
//
// R1 and R2 penalise |g|^2 for the gradient g of the sum of the logits in the images. With e the gradient of
// that sum in z, and v_0 = k g (k is such that k g is the penalty's own gradient in g), up the layers
//     v = (v_below W^T) * d        s = (v_below W^T) * eh * d2,   eh: the gradient of the sum in h
// and the penalty adds s to dz, before it goes on downwards, and e^T v_below to dW. Since the weight gradient
// of [dz; e] and [h_below; v_below], one upon the other, is the sum of both, it is one product.
#pragma once

#include "core/activation.h"
#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// Matrices are dense, [rows, columns].
struct MlpForwardParams {
  DType dtype = DType::float32;  // float32 or float64
  Act act = Act::linear;
  double alpha = 0, gain = 1;
  static constexpr double clamp = -1;  // there is none
  int64_t rows = 0, columns = 0;
  int64_t second_rows = 0;  // the first rows, of which d2 is wanted
  int64_t chunk = 1;        // an item is so many rows
  const void* b = nullptr;
  void* h = nullptr;   // in: the product
  void* d = nullptr;   // null for a linear layer, whose d is the gain
  void* d2 = nullptr;  // null for a piecewise linear layer, whose d2 is 0
};

struct MlpBackwardParams {
  DType dtype = DType::float32;
  int64_t rows = 0, columns = 0;
  int64_t chunk = 1;          // an item is so many columns
  const void* dh = nullptr;   // may be dz
  const void* d = nullptr;    // null: `gain`
  const void* add = nullptr;  // added to the first `added` rows of dz, or null
  int64_t added = 0;
  double gain = 1;
  void* dz = nullptr;
  void* db = nullptr;  // null: not wanted
};

struct MlpSecondParams {
  DType dtype = DType::float32;
  int64_t count = 0;         // elements
  int64_t chunk = 1;         // an item is so many elements
  const void* d = nullptr;   // null: `gain`
  const void* d2 = nullptr;  // null: no s
  const void* eh = nullptr;
  double gain = 1;
  void* v = nullptr;  // in: v_below W^T
  void* s = nullptr;
};

// C = A B of matrices [m, k] and [k, n]. A transposed factor is given as [k, m] or [n, k].
struct MlpProductParams {
  static constexpr int64_t kStrip = 64;

  DType dtype = DType::float32;
  int64_t m = 0, n = 0, k = 0;
  int64_t block = 1;  // an item is so many rows of kStrip columns of C
  const void* a = nullptr;
  const void* b = nullptr;
  bool a_transposed = false, b_transposed = false;
  void* c = nullptr;
  bool adds = false;  // to what is in C
};

}  // namespace aigc

AIGC_KERNEL(mlp_product, MlpProductParams)    // items: strips of columns of a block of rows, then of the next
AIGC_KERNEL(mlp_forward, MlpForwardParams)    // items: chunks of rows
AIGC_KERNEL(mlp_backward, MlpBackwardParams)  // items: chunks of columns
AIGC_KERNEL(mlp_second, MlpSecondParams)      // items: chunks of elements
