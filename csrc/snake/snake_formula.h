// snake and its derivatives at one point, for CPU vectors and CUDA scalars.
#pragma once

#include <limits>

#include "core/math.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

template <class V>
struct SnakePoint {
  using S = element_t<V>;
  V x, alpha, u;
  V s, c, q;  // sin u, cos u, s/u

  AIGC_HOST_DEVICE SnakePoint(V at, V frequency) : x(at), alpha(frequency), u(frequency * at) {
    sincos(u, s, c);
    const auto overflows = abs(u) > std::numeric_limits<S>::max();
    s = select(overflows, V{}, s);
    c = select(overflows, V{}, c);
    q = select(u == V{}, broadcast<V>(1), s / u);
  }

  AIGC_HOST_DEVICE V value() const { return x * (S(1) + s * q); }
  AIGC_HOST_DEVICE V of_x() const { return S(1) + S(2) * s * c; }
  // The factors come one after the other: x^2 may overflow where the product does not.
  AIGC_HOST_DEVICE V of_alpha() const { return x * (x * (q * (S(2) * c - q))); }

  // The gradients of dy, x and alpha, from v and w, the cotangents of dx and dalpha.
  AIGC_HOST_DEVICE void second_gradients(V dy, V v, V w, V& grad_dy, V& grad_x, V& grad_alpha) const {
    const V cosine = c * c - s * s, difference = c - q;
    const V slope = select(u == V{}, V{}, difference / u);
    const V k = S(2) * (difference * slope - s * q);
    grad_dy = v * of_x() + w * of_alpha();
    grad_x = S(2) * dy * (cosine * (alpha * v + x * w));
    grad_alpha = dy * (S(2) * (x * cosine) * v + x * (x * k) * (x * w));
  }
};

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
