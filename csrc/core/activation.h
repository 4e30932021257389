// The activations f, f' and f'' as functors for CPU vectors (V = Vec<float>, Vec<double>) and CUDA scalars.
#pragma once

#include "core/math.h"

namespace aigc {

enum class Act : int32_t { linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };
constexpr int kActCount = 9;

// Piecewise linear: f' is constant on either side of 0, so one bit per element is all the backward needs.
constexpr bool is_piecewise_linear(Act act) {
  return act == Act::linear || act == Act::relu || act == Act::lrelu;
}

inline namespace AIGC_MATH_NAMESPACE {

// Calls f with the activation as a type, so that each gets its own loop.
template <Act A>
struct ActTag {
  static constexpr Act value = A;
};
template <int i = 0, class F>
inline void dispatch_act(Act act, F&& f) {
  if (act == Act(i)) return f(ActTag<Act(i)>());
  if constexpr (i + 1 < kActCount) dispatch_act<i + 1>(act, f);
}

constexpr double kSeluScale = 1.0507009873554804934193349852946;
constexpr double kSeluAlpha = 1.6732632423543772848170429916717;

// Comparisons are written as x <= 0, so that NaN takes the other branch and stays NaN.
template <Act A, class V, class S>
AIGC_HOST_DEVICE inline V activation(V x, S alpha) {
  if constexpr (A == Act::linear) {
    return x;
  } else if constexpr (A == Act::relu) {
    return select(x <= V{}, V{}, x);
  } else if constexpr (A == Act::lrelu) {
    return select(x <= V{}, x * alpha, x);
  } else if constexpr (A == Act::tanh) {
    return tanh(x);
  } else if constexpr (A == Act::sigmoid) {
    return sigmoid(x);
  } else if constexpr (A == Act::elu) {
    return select(x <= V{}, expm1(x), x);
  } else if constexpr (A == Act::selu) {
    return S(kSeluScale) * select(x <= V{}, S(kSeluAlpha) * expm1(x), x);
  } else if constexpr (A == Act::softplus) {
    return softplus(x);
  } else {
    return x * sigmoid(x);
  }
}

// sigmoid(x) and sigmoid(-x), neither as a difference, by one exponential and one division.
template <class V>
AIGC_HOST_DEVICE inline void sigmoids(V x, V& plus, V& minus) {
  const V e = exp(-abs(x)), large = broadcast<V>(1) / (broadcast<V>(1) + e), small = e * large;
  plus = select(x < V{}, small, large);
  minus = select(x < V{}, large, small);
}

// f'(x) of the smooth activations; at selu's corner the left derivative, as in PyTorch.
template <Act A, class V>
AIGC_HOST_DEVICE inline V activation_derivative(V x) {
  using S = element_t<V>;
  static_assert(!is_piecewise_linear(A));
  const V one = broadcast<V>(1);
  if constexpr (A == Act::tanh) {
    const V t = tanh(x);
    return one - t * t;
  } else if constexpr (A == Act::sigmoid) {
    const V e = exp(-abs(x)), sum = one + e;  // sigmoid(x) * sigmoid(-x), even in x
    return e / (sum * sum);
  } else if constexpr (A == Act::elu) {
    return select(x <= V{}, exp(x), one);
  } else if constexpr (A == Act::selu) {
    return S(kSeluScale) * select(x <= V{}, S(kSeluAlpha) * exp(x), one);
  } else if constexpr (A == Act::softplus) {
    return sigmoid(x);
  } else {
    V s, r;
    sigmoids(x, s, r);
    return s + x * (s * r);
  }
}

template <Act A, class V>
AIGC_HOST_DEVICE inline V activation_second_derivative(V x) {
  using S = element_t<V>;
  static_assert(!is_piecewise_linear(A));
  const V one = broadcast<V>(1);
  if constexpr (A == Act::tanh) {
    const V t = tanh(x);
    return S(-2) * t * (one - t * t);
  } else if constexpr (A == Act::sigmoid) {
    V s, r;
    sigmoids(x, s, r);
    return s * r * (r - s);
  } else if constexpr (A == Act::elu) {
    return select(x <= V{}, exp(x), V{});
  } else if constexpr (A == Act::selu) {
    return select(x <= V{}, S(kSeluScale * kSeluAlpha) * exp(x), V{});
  } else if constexpr (A == Act::softplus) {
    V s, r;
    sigmoids(x, s, r);
    return s * r;
  } else {
    V s, r;
    sigmoids(x, s, r);
    return s * r * (S(2) + x * (r - s));
  }
}

// y = clamp(gain * f(z), -limit, limit), for Params with alpha, gain and clamp (negative: none), and its
// derivatives. On the boundary of the clamp they are 1, as those of torch.clamp.
template <Act A, class S>
struct ClampedActivation {
  S alpha, gain, limit;
  bool clamped;

  template <class Params>
  AIGC_HOST_DEVICE explicit ClampedActivation(const Params& p)
      : alpha(S(p.alpha)), gain(S(p.gain)), limit(S(p.clamp)), clamped(p.clamp >= 0) {}

  template <class V>
  AIGC_HOST_DEVICE V unclamped(V z) const {
    return gain * activation<A>(z, alpha);
  }
  template <class V>
  AIGC_HOST_DEVICE V clamp(V t) const {
    const V high = broadcast<V>(limit), low = broadcast<V>(-limit);
    return select(t > limit, high, select(t < -limit, low, t));
  }
  template <class V>
  AIGC_HOST_DEVICE auto inside(V t) const {
    return (t <= limit) & (t >= -limit);
  }

  template <class V>
  AIGC_HOST_DEVICE V value(V z) const {
    V t = unclamped(z);
    if (clamped) t = clamp(t);
    return t;
  }

  // of z, from that of y
  template <class V>
  AIGC_HOST_DEVICE V gradient(V z, V dy) const {
    V dz;
    if constexpr (A == Act::linear) {
      dz = dy * gain;
    } else if constexpr (A == Act::relu) {
      dz = select(z <= V{}, V{}, dy * gain);  // 0 whatever dy is
    } else if constexpr (A == Act::lrelu) {
      dz = dy * select(z <= V{}, broadcast<V>(gain * alpha), broadcast<V>(gain));
    } else {
      dz = dy * (gain * activation_derivative<A>(z));
    }
    if (clamped) dz = select(inside(unclamped(z)), dz, V{});
    return dz;
  }

  // of dy and z, from u, the gradient of gradient(z, dy); for smooth activations
  template <class V>
  AIGC_HOST_DEVICE void second_gradients(V z, V dy, V u, V& of_dy, V& of_z) const {
    const V first = activation_derivative<A>(z), second = activation_second_derivative<A>(z);
    V cotangent = gain * u;
    if (clamped) cotangent = select(inside(unclamped(z)), cotangent, V{});
    of_z = cotangent * dy * second;
    of_dy = cotangent * first;
  }
};

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
