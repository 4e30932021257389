// The gates of gated_act and their derivatives, for CPU vectors and CUDA scalars.
#pragma once

#include "core/math.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

template <class V>
struct Gates {
  V t, s;  // tanh(z1), sigmoid(z2)

  AIGC_HOST_DEVICE Gates(V z1, V z2) : t(tanh(z1)), s(sigmoid(z2)) {}

  AIGC_HOST_DEVICE V value() const { return t * s; }
  AIGC_HOST_DEVICE void gradients(V dy, V& dz1, V& dz2) const {
    using S = element_t<V>;
    dz1 = dy * s * (S(1) - t * t);
    dz2 = dy * t * (s * (S(1) - s));
  }
};

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
