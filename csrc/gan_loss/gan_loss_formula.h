// The terms of gan_loss, for CPU vectors and CUDA scalars.
#pragma once

#include "core/math.h"
#include "gan_loss/gan_loss.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

constexpr GanTerm kGanTerms[] = {GanTerm::softplus, GanTerm::hinge, GanTerm::square, GanTerm::linear};
template <class F>
inline void dispatch_term(GanTerm term, F&& f) {
  dispatch_first<kGanTerms>([&](GanTerm t) { return t == term; }, f);
}

// The factor of a side's sum in the loss.
AIGC_HOST_DEVICE inline double scale(const GanLossParams& p, const GanLossSide& side) {
  return p.reduction == GanReduction::mean ? side.factor / double(side.count) : side.factor;
}

template <class V>
struct GanPhi {
  V phi, slope;
};

template <GanTerm K, class V>
AIGC_HOST_DEVICE inline GanPhi<V> gan_phi(const GanLossSide& side, V x, V shift) {
  using S = element_t<V>;
  const S sign = S(side.sign);
  const V u = sign * (x - shift);
  if constexpr (K == GanTerm::softplus) {
    GanPhi<V> result{softplus(u), sign * sigmoid(u)};
    if (side.smoothing != 0) {  // 0 * infinity would be NaN
      result.phi += S(side.smoothing) * x;
      result.slope += S(side.smoothing);
    }
    return result;
  } else if constexpr (K == GanTerm::hinge) {
    const V v = u + S(1);
    const auto below = v <= V{};  // NaN takes the other branch, as in PyTorch
    return {select(below, V{}, v), select(below, V{}, broadcast<V>(sign))};
  } else if constexpr (K == GanTerm::square) {
    const V v = x - S(side.target);
    return {v * v * S(0.5), v};
  } else {
    return {u, broadcast<V>(sign)};
  }
}

// What a logit adds to the sums of its side, and the slope of its l2 penalty. `w` is its weight.
template <class V>
struct GanLogit {
  V loss, score, slope, l2_slope;

  AIGC_HOST_DEVICE void weigh(V w) {
    loss *= w;
    slope *= w;
    l2_slope *= w;
  }
};

template <GanTerm K, class V>
AIGC_HOST_DEVICE inline GanLogit<V> gan_logit(const GanLossParams& p, const GanLossSide& side, V x, V shift) {
  using S = element_t<V>;
  const GanPhi<V> term = gan_phi<K>(side, x, shift);
  GanLogit<V> logit{side.counts_phi ? term.phi : V{}, x, term.slope, S(p.l2) * x};
  if constexpr (K == GanTerm::softplus)  // of a fake, the slope; of a real one, 1 + slope would cancel
    if (p.is_probability) logit.score = side.sign > 0 ? term.slope : sigmoid(x);
  if (p.l2 != 0) logit.loss += logit.l2_slope * x * S(0.5);
  return logit;
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
