// A step of adam_ema for other ops.
#pragma once

#include "adam_ema/adam_ema.h"
#include "glue/tensor.h"

namespace aigc {

struct AdamTensors {
  const TensorList &params, &grads, &exp_avgs, &exp_avg_sqs, &emas, &steps;
};

// A step whose tensors are checked. They must outlive it.
struct AdamWork {
  AdamEmaParams params;
  std::vector<AdamSlot> slots;
  std::vector<AdamNumber> steps;
  TensorList copies;  // of gradients with other strides
  OptionalTensor found;
  int64_t elements = 0;
};

// Checks the numbers that are given by value, and puts them into the params.
void set_rates(AdamEmaParams& params, double lr, double beta1, double beta2, double eps, double weight_decay,
               double ema_decay, const char* op);

// Gradients whose strides are not their parameter's are copied here.
AdamWork adam_work(const AdamTensors& tensors, AdamEmaParams params, const OptionalTensor& skipped,
                   const char* op);

// Whether a gradient is infinite or NaN, looked at before the step: then it changes nothing but `skipped`.
void look_for_nonfinite(AdamWork& work, const Tensor& like);

void take_step(AdamWork& work, const Tensor& like);

}  // namespace aigc
