// snake with a divisor of its own, beta, and what the ends of a signal add to its filters' transposes; for
// CPU vectors and CUDA scalars.
#pragma once

#include "snake/snake_formula.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// z + sin^2(u) / beta, u = alpha z. Where u overflows, its sine is 0, and its cosine too, as for SnakePoint.
template <class V>
struct SnakeBetaPoint {
  using S = element_t<V>;
  V z, u, s, c;
  S alpha, inverse, ratio;  // 1 / beta, alpha / beta

  AIGC_HOST_DEVICE SnakeBetaPoint(V at, S frequency, S beta)
      : z(at), u(frequency * at), alpha(frequency), inverse(S(1) / beta), ratio(frequency / beta) {
    sincos(u, s, c);
    const auto overflows = abs(u) > std::numeric_limits<S>::max();
    s = select(overflows, V{}, s);
    c = select(overflows, V{}, c);
  }

  AIGC_HOST_DEVICE V value() const { return z + s * (s * inverse); }
  AIGC_HOST_DEVICE V of_z() const { return S(1) + S(2) * s * c * ratio; }
  AIGC_HOST_DEVICE V of_alpha() const { return z * (S(2) * s * c * inverse); }
  AIGC_HOST_DEVICE V of_beta() const { return -(s * inverse) * (s * inverse); }

  // The gradients of g, z, alpha and beta, from v, a and b, the cotangents of dz, dalpha and dbeta.
  AIGC_HOST_DEVICE void second_gradients(V g, V v, S a, S b, V& grad_g, V& grad_z, V& grad_alpha,
                                         V& grad_beta) const {
    const V sine = S(2) * s * c * inverse, cosine = S(2) * (c * c - s * s) * inverse;
    const V square = (s * inverse) * (s * inverse);
    const V mixed = sine + u * cosine;  // d2/dz dalpha
    grad_g = v * of_z() + a * of_alpha() + b * of_beta();
    grad_z = g * (v * (alpha * alpha * cosine) + a * mixed - b * (alpha * inverse * sine));
    grad_alpha = g * (v * mixed + a * (z * (z * cosine)) - b * (z * inverse * sine));
    grad_beta = g * (b * (S(2) * inverse * square) - v * (alpha * inverse * sine) - a * (z * inverse * sine));
  }
};

// ---- the ends --------------------------------------------------------------------------------------------
// A signal is continued by its ends, so their gradients are those of all positions there. `d` and `u` are the
// taps, dy(i) and dz(j) read a signal, 0 outside [0, L) and [0, 2L).

// g_0 and g_2L-1 of g = D' dy.
template <class S, class Taps, class F>
AIGC_HOST_DEVICE inline S first_of_transposed_down(const Taps& d, int64_t taps, F&& dy) {
  const int64_t pad = taps / 2;
  S running = 0, sum = 0;
  for (int64_t k = taps - 1; k >= pad; --k) {
    running += d[k];
    if ((k - pad) % 2 == 0) sum += dy((k - pad) / 2) * running;
  }
  return sum;
}
template <class S, class Taps, class F>
AIGC_HOST_DEVICE inline S last_of_transposed_down(const Taps& d, int64_t taps, int64_t length, F&& dy) {
  const int64_t pad = taps / 2;
  S running = 0, sum = 0;
  for (int64_t k = 0; k < pad; ++k) {
    running += d[k];
    if ((pad - 1 - k) % 2 == 0) sum += dy(length - 1 - (pad - 1 - k) / 2) * running;
  }
  return sum;
}

// dx_0 and dx_L-1 of dx = U' dz.
template <class S, class Taps, class F>
AIGC_HOST_DEVICE inline S first_of_transposed_up(const Taps& u, int64_t taps, F&& dz) {
  const int64_t pad = (taps - 1) / 2;
  S running[2] = {0, 0}, sum = 0;
  for (int64_t k = taps - 1; k >= pad; --k) {
    running[k % 2] += u[k];
    sum += dz(k - pad) * running[k % 2];
  }
  return sum;
}
template <class S, class Taps, class F>
AIGC_HOST_DEVICE inline S last_of_transposed_up(const Taps& u, int64_t taps, int64_t length, F&& dz) {
  const int64_t pad = (taps - 1) / 2;
  S running[2] = {0, 0}, sum = 0;
  for (int64_t k = 0; k <= pad + 1; ++k) {
    if (k < taps) running[k % 2] += u[k];
    sum += dz(2 * (length - 1) + k - pad) * running[k % 2];
  }
  return sum;
}
// The first and the last in one, of a signal of one element.
template <class S, class Taps, class F>
AIGC_HOST_DEVICE inline S only_of_transposed_up(const Taps& u, int64_t taps, F&& dz) {
  S totals[2] = {0, 0};
  for (int64_t k = 0; k < taps; ++k) totals[k % 2] += u[k];
  const int64_t pad = (taps - 1) / 2;
  return dz(0) * totals[pad % 2] + dz(1) * totals[(pad + 1) % 2];
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
