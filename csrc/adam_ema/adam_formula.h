// The update of adam_ema, for CPU vectors and CUDA scalars.
#pragma once

#include "adam_ema/adam_ema.h"
#include "core/math.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

AIGC_HOST_DEVICE inline double read(const AdamNumber& number) {
  if (number.at == nullptr) return number.value;
  return number.is_float64 ? *static_cast<const double*>(number.at) : *static_cast<const float*>(number.at);
}

AIGC_HOST_DEVICE inline void increment(const AdamNumber& number) {
  if (number.is_float64)
    *static_cast<double*>(number.at) += 1;
  else
    *static_cast<float*>(number.at) += 1;
}

// In double precision, as torch.optim's fused kernel computes it.
AIGC_HOST_DEVICE inline double bias_correction(double beta, double step) { return 1 - ::pow(beta, step); }

// a + weight * (b - a), from the nearer end, as torch.lerp
template <class V, class S>
AIGC_HOST_DEVICE inline V lerp(V a, V b, S weight) {
  return weight < S(0.5) ? a + weight * (b - a) : b + (weight - S(1)) * (b - a);
}

template <class S>
struct AdamStep {
  S decay, step_size, weight1, weight2, keep2, scale2, eps, ema_weight;

  AIGC_HOST_DEVICE AdamStep(const AdamEmaParams& p, double bias_correction1, double root_bias_correction2) {
    const double lr = read(p.lr), beta1 = read(p.beta1), beta2 = read(p.beta2);
    decay = S(1 - lr * read(p.weight_decay));
    step_size = S(lr / bias_correction1);
    weight1 = S(1 - beta1);
    weight2 = S(1 - beta2);
    keep2 = S(beta2);
    scale2 = S(1 / root_bias_correction2);  // a second division per element would cost a third of the speed
    eps = S(p.eps);
    ema_weight = S(1 - read(p.ema_decay));
  }

  // Updates parameter w and the averages m and v for the gradient g.
  template <class V>
  AIGC_HOST_DEVICE void update(V& w, V g, V& m, V& v) const {
    m = lerp(m, g, weight1);
    v = weight2 * g * g + keep2 * v;
    w = w * decay - step_size * m / (sqrt(v) * scale2 + eps);
  }
  template <class V>
  AIGC_HOST_DEVICE V averaged(V ema, V w) const {
    return lerp(ema, w, ema_weight);
  }
};

// 0 * x is a zero where x is finite, else NaN, and a sum keeps a NaN.
template <class V>
AIGC_HOST_DEVICE inline V zero_if_finite(V x) {
  return element_t<V>(0) * x;
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
