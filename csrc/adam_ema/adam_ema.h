// One step of Adam with decoupled weight decay, and the moving average of the weights, over many tensors in
// one pass.
//
//     t = step + 1
//     p = p * (1 - lr * weight_decay)
//     m = m + (1 - beta1) * (g - m)
//     v = beta2 * v + (1 - beta2) * g^2
//     p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
//     e = e + (1 - ema_decay) * (p - e)
//
// Traffic for float32: 20 bytes a parameter read, 16 written (without the average 16 and 12).
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// A float32 or float64 number, given by value or by the address of a tensor's element.
struct AdamNumber {
  double value = 0;
  void* at = nullptr;
  bool is_float64 = false;
};

struct AdamSlot {
  DType dtype = DType::float32;  // of param and grad; the others hold acc_t of it
  int64_t numel = 0;
  int64_t offset = 0;  // of its first element, counting the elements of all slots
  void* param = nullptr;
  const void* grad = nullptr;
  void* exp_avg = nullptr;
  void* exp_avg_sq = nullptr;
  void* ema = nullptr;  // null: no average
};

struct AdamEmaParams {
  const AdamSlot* slots = nullptr;
  int64_t slot_count = 0;
  int64_t block = 0;  // an item of the update is a block of this many elements, counting those of all slots

  const AdamNumber* steps = nullptr;  // one for each slot, or one for all
  int64_t step_count = 0;
  AdamNumber lr, beta1, beta2, weight_decay, ema_decay;
  double eps = 0;

  const float* found_inf = nullptr;  // if it is not 0, nothing but `skipped` is written
  int64_t* skipped = nullptr;        // counts such calls
};

struct AnyNonfiniteParams {
  const AdamSlot* slots = nullptr;  // only grad is read
  int64_t slot_count = 0;
  int64_t block = 0;
  float* found = nullptr;  // set to 1 by any block that finds an infinity or a NaN
};

}  // namespace aigc

AIGC_KERNEL(adam_ema_advance, AdamEmaParams)           // one item, before the update: counts the step
AIGC_KERNEL(adam_ema_update, AdamEmaParams)            // items: blocks
AIGC_KERNEL(any_nonfinite_blocks, AnyNonfiniteParams)  // items: blocks
