// The code that a step draws, for the CPU and for CUDA.
#pragma once

#include "core/math.h"
#include "wavenet_step/wavenet_step.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// From weights that need not add up to 1, by the inverse of their distribution function at `uniform`; -1 if
// they are not finite or all are 0. In float64 and in the order of the codes.
template <class T>
AIGC_HOST_DEVICE inline int64_t drawn_code(const T* weights, int64_t classes, double uniform) {
  double total = 0;
  for (int64_t k = 0; k < classes; ++k) total += double(weights[k]);
  if (!(total > 0 && total < double(INFINITY))) return -1;
  const double target = uniform * total;
  double sum = 0;
  int64_t last = -1;
  for (int64_t k = 0; k < classes; ++k) {
    sum += double(weights[k]);
    if (weights[k] > 0) last = k;
    if (sum > target && weights[k] > 0) return k;
  }
  return last;  // where uniform is 1 but for a rounding
}

// The first of the largest; -1 if a logit is NaN.
template <class T>
AIGC_HOST_DEVICE inline int64_t most_likely_code(const T* logits, int64_t classes) {
  int64_t best = 0;
  for (int64_t k = 0; k < classes; ++k) {
    if (logits[k] != logits[k]) return -1;
    if (logits[k] > logits[best]) best = k;
  }
  return best;
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
