// What group_norm_act computes for an element, a channel of a sample and a group, on the CPU and in CUDA.
#pragma once

#include "core/math.h"
#include "group_norm_act/group_norm_act.h"

#if defined(AIGC_ISA)
#include "core/simd.h"
#define AIGC_GROUP_NORM_FUNCTION inline
#else
#include "core/cuda_vec.h"
#define AIGC_GROUP_NORM_FUNCTION __device__ inline
#endif

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// ---- elements -------------------------------------------------------------------------------------------

// An element, or a vector of them; f(kScale) is a factor of its channel.
template <Act A, class V>
struct GroupNormElement {
  using S = element_t<V>;

  ClampedActivation<A, S> act;
  V centred, z;

  template <class F>
  AIGC_HOST_DEVICE GroupNormElement(const ClampedActivation<A, S>& activation, F&& f, V x, V residual)
      : act(activation), centred(x - f(kMean)), z(centred * f(kScale) + f(kBias) + residual) {}

  AIGC_HOST_DEVICE V value() const { return act.value(z); }
  AIGC_HOST_DEVICE V dz(V dy) const { return act.gradient(z, dy); }
  template <class F>
  AIGC_HOST_DEVICE V dx(F&& f, V dz) const {
    return f(kScale) * dz - f(kConstant) - centred * f(kSlope);
  }

  // grad_dy and e
  template <class F>
  AIGC_HOST_DEVICE void second(F&& f, V dy, V v, V v_residual, V& of_dy, V& of_z) const {
    const V g =
        f(kScale) * (v - f(kMeanV) - centred * f(kSlopeV)) + centred * f(kWeightV) + f(kBiasV) + v_residual;
    if constexpr (is_piecewise_linear(A)) {
      of_dy = act.gradient(z, g);
      of_z = V{};
    } else {
      act.second_gradients(z, dy, g, of_dy, of_z);
    }
  }
  template <class F>
  AIGC_HOST_DEVICE V grad_x(F&& f, V dz, V v, V of_z) const {
    return f(kScale) * of_z + f(kOfDz) * dz - f(kOfV) * v - f(kConstant) - centred * f(kSlope);
  }
};

// ---- channels -------------------------------------------------------------------------------------------

AIGC_GROUP_NORM_FUNCTION double number_at(const GroupNormNumbers& numbers, int64_t at, double otherwise) {
  double result = otherwise;
  if (numbers.data)
    dispatch_dtype(numbers.dtype, [&]<class T>(T*) {
      const T* from = static_cast<const T*>(numbers.data) + at;
      if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
        result = *from;
      } else if constexpr (std::is_same_v<T, bfloat16>) {  // a whole vector would be slow
        const uint32_t bits = uint32_t(from->bits) << 16;
        float number;
        memcpy(&number, &bits, sizeof(number));
        result = number;
      } else {
        result = load_scalar(from);
      }
    });
  return result;
}
AIGC_GROUP_NORM_FUNCTION void put_number(const GroupNormGradient& gradient, int64_t at, double value) {
  if (gradient.data)
    dispatch_dtype(gradient.dtype, [&]<class T>(T*) {
      T* to = static_cast<T*>(gradient.data) + at;
      if constexpr (sizeof(T) == sizeof(acc_t<T>))
        *to = T(value);
      else
        store_scalar(to, acc_t<T>(value));
    });
}

// A channel of a sample.
struct GroupNormChannel {
  double weight, bias, scale, shift, r;
  int64_t of_numbers, of_factors, of_partials;  // where it is in [samples][channels] and so on

  AIGC_GROUP_NORM_FUNCTION GroupNormChannel(const GroupNormParams& p, int64_t sample, int64_t group,
                                            int64_t channel)
      : weight(number_at(p.weight, channel, 1)),
        bias(number_at(p.bias, channel, 0)),
        scale(number_at(p.scale, sample * p.channels + channel, 1)),
        shift(number_at(p.shift, sample * p.channels + channel, 0)),
        r(p.rstd[sample * p.groups + group]),
        of_numbers(sample * p.channels + channel),
        of_factors(sample * kFactors * p.channels + channel),
        of_partials(sample * p.parts * p.sums * p.channels + channel) {}

  AIGC_GROUP_NORM_FUNCTION double a() const { return weight * scale; }
  AIGC_GROUP_NORM_FUNCTION double b() const { return bias * scale + shift; }
  // of their gradients
  AIGC_GROUP_NORM_FUNCTION double cotangent_of_a(const GroupNormParams& p, int64_t channel) const {
    return scale * number_at(p.v_weight, channel, 0) + weight * number_at(p.v_scale, of_numbers, 0);
  }
  AIGC_GROUP_NORM_FUNCTION double cotangent_of_b(const GroupNormParams& p, int64_t channel) const {
    return scale * number_at(p.v_bias, channel, 0) + bias * number_at(p.v_scale, of_numbers, 0) +
           number_at(p.v_shift, of_numbers, 0);
  }

  template <class S>
  AIGC_GROUP_NORM_FUNCTION void set(const GroupNormParams& p, GroupNormFactor factor, double value) const {
    static_cast<S*>(p.factors)[of_factors + factor * p.channels] = S(value);
  }
};

// ---- statistics -----------------------------------------------------------------------------------------

// What a part adds to the sums for a group's mean and variance. `term` counts the parts of a group, and the
// channels in them where these are inside.
struct GroupNormStatistics {
  const GroupNormParams& p;
  int64_t sample, group;

  AIGC_GROUP_NORM_FUNCTION int64_t terms() const {
    return statistics_parts(p) * (p.channels_inside ? p.group_channels : 1);
  }
  AIGC_GROUP_NORM_FUNCTION double mean_term(int64_t term) const {
    double count, mean, squares;
    read(term, count, mean, squares);
    return count * mean;
  }
  AIGC_GROUP_NORM_FUNCTION double variance_term(int64_t term, double of_all) const {
    double count, mean, squares;
    read(term, count, mean, squares);
    return squares + count * (mean - of_all) * (mean - of_all);
  }
  // 0 for a single element, which does not depend on x once its mean is subtracted.
  AIGC_GROUP_NORM_FUNCTION double rstd(double squares) const {
    const int64_t count = group_elements(p);
    return count > 1 ? 1 / ::sqrt(squares / double(count) + p.eps) : 0;
  }

 private:
  AIGC_GROUP_NORM_FUNCTION void read(int64_t term, double& count, double& mean, double& squares) const {
    if (p.channels_inside) {
      const int64_t width = p.group_channels, part = term / width;
      const double* at =
          p.partials + (sample * p.parts + part) * 2 * p.channels + group * width + (term - part * width);
      count = double(part_of(p.inner, p.inner_per_part, part).size());
      mean = at[0];
      squares = at[p.channels];
    } else {
      const double* at = p.partials + ((sample * p.groups + group) * statistics_parts(p) + term) * 2;
      count = double(part_of(group_elements(p), kStatisticsPart, term).size());
      mean = at[0];
      squares = at[1];
    }
  }
};

// ---- groups ---------------------------------------------------------------------------------------------

// A join adds up the terms of a group's channels and goes through them once more with the sums.
struct GroupNormJoin {
  const GroupNormParams& p;
  int64_t sample, group;

  template <class S>
  AIGC_GROUP_NORM_FUNCTION void set_statistics(int64_t channel, double mean) const {
    const GroupNormChannel c(p, sample, group, channel);
    c.set<S>(p, kMean, mean);
    c.set<S>(p, kScale, c.a() * c.r);
    c.set<S>(p, kBias, c.b());
  }

 protected:
  AIGC_GROUP_NORM_FUNCTION double count() const { return double(group_elements(p)); }
  // The sums over the channel, which take the place of those over its first part.
  template <int kSums>
  AIGC_GROUP_NORM_FUNCTION double* totals(const GroupNormChannel& c) const {
    double* first = p.partials + c.of_partials;
    for (int64_t part = 1; part < p.parts; ++part)
      for (int s = 0; s < kSums; ++s) first[s * p.channels] += first[(part * p.sums + s) * p.channels];
    return first;
  }
};

struct GroupNormGradientJoin : GroupNormJoin {
  static constexpr int kTerms = 2;

  AIGC_GROUP_NORM_FUNCTION void terms(int64_t channel, double (&out)[kTerms]) const {
    const GroupNormChannel c(p, sample, group, channel);
    const double* sums = totals<2>(c);
    out[0] = c.a() * sums[0];
    out[1] = c.a() * sums[p.channels];
  }
  template <class S>
  AIGC_GROUP_NORM_FUNCTION void finish(int64_t channel, const double (&of_group)[kTerms]) const {
    const GroupNormChannel c(p, sample, group, channel);
    double* sums = p.partials + c.of_partials;
    const double of_b = sums[0], of_a = sums[p.channels] *= c.r;
    put_number(p.dscale, c.of_numbers, c.weight * of_a + c.bias * of_b);
    put_number(p.dshift, c.of_numbers, of_b);
    c.set<S>(p, kConstant, c.r * of_group[0] / count());
    c.set<S>(p, kSlope, c.r * of_group[1] / count() * c.r * c.r);
  }
};

struct GroupNormCotangentJoin : GroupNormJoin {
  static constexpr int kTerms = 2;

  AIGC_GROUP_NORM_FUNCTION void terms(int64_t channel, double (&out)[kTerms]) const {
    const double* sums = totals<2>(GroupNormChannel(p, sample, group, channel));
    out[0] = sums[0];
    out[1] = sums[p.channels];
  }
  template <class S>
  AIGC_GROUP_NORM_FUNCTION void finish(int64_t channel, const double (&of_group)[kTerms]) const {
    const GroupNormChannel c(p, sample, group, channel);
    const double mean = of_group[0] / count(), slope = of_group[1] / count() * c.r * c.r;
    if (channel == group * p.group_channels) {
      double* kept = p.cotangents + (sample * p.groups + group) * 2;
      kept[0] = mean;
      kept[1] = slope;
    }
    c.set<S>(p, kMeanV, mean);
    c.set<S>(p, kSlopeV, slope);
    c.set<S>(p, kWeightV, c.cotangent_of_a(p, channel) * c.r);
    c.set<S>(p, kBiasV, c.cotangent_of_b(p, channel));
  }
};

struct GroupNormSecondJoin : GroupNormJoin {
  static constexpr int kTerms = 4;

  // A*dz, A*dz*c, A*e + vA*dz, and A*(e*c + dz*t/r) + vA*dz*c
  AIGC_GROUP_NORM_FUNCTION void terms(int64_t channel, double (&out)[kTerms]) const {
    const GroupNormChannel c(p, sample, group, channel);
    const double *sums = totals<5>(c), *of_v = p.cotangents + (sample * p.groups + group) * 2;
    const double dz = sums[0], dz_c = sums[p.channels], dz_v = sums[2 * p.channels];
    const double e = sums[3 * p.channels], e_c = sums[4 * p.channels];
    const double a = c.a(), v_a = c.cotangent_of_a(p, channel);
    out[0] = a * dz;
    out[1] = a * dz_c;
    out[2] = a * e + v_a * dz;
    out[3] = a * (e_c + dz_v - of_v[0] * dz - of_v[1] * dz_c) + v_a * dz_c;
  }
  template <class S>
  AIGC_GROUP_NORM_FUNCTION void finish(int64_t channel, const double (&of_group)[kTerms]) const {
    const GroupNormChannel c(p, sample, group, channel);
    double* sums = p.partials + c.of_partials;
    const double* of_v = p.cotangents + (sample * p.groups + group) * 2;
    const double r = c.r, of_b = sums[0], of_a = r * sums[p.channels];
    const double grad_b = sums[3 * p.channels];
    const double grad_a =
        r * (sums[4 * p.channels] + sums[2 * p.channels] - of_v[0] * of_b - of_v[1] * sums[p.channels]);
    put_number(p.dscale, c.of_numbers,
               c.weight * grad_a + c.bias * grad_b + number_at(p.v_weight, channel, 0) * of_a +
                   number_at(p.v_bias, channel, 0) * of_b);
    put_number(p.dshift, c.of_numbers, grad_b);
    sums[p.channels] = of_a;
    sums[2 * p.channels] = grad_a;
    const double slope = of_group[1] / count() * r * r;  // of v, in gh
    const double mean = of_group[2] / count() - of_v[1] * of_group[0] / count() - slope * of_v[0];
    const double product = of_group[3] / count() - 2 * of_v[1] * of_group[1] / count();
    c.set<S>(p, kOfDz, r * (c.cotangent_of_a(p, channel) - c.a() * of_v[1]));
    c.set<S>(p, kOfV, r * slope);
    c.set<S>(p, kConstant, r * mean);
    c.set<S>(p, kSlope, r * product * r * r);
  }
};

// ---- parameters -----------------------------------------------------------------------------------------

// What a sample adds to the gradients of weight and bias: of the forward, or of the backward, which leaves
// five numbers of a channel.
AIGC_GROUP_NORM_FUNCTION void parameter_terms(const GroupNormParams& p, int64_t sample, int64_t group,
                                              int64_t channel, double& of_weight, double& of_bias) {
  const bool second = p.v != nullptr;
  const GroupNormChannel c(p, sample, group, channel);
  const double* sums = p.partials + c.of_partials;
  if (second) {
    const double v_scale = number_at(p.v_scale, c.of_numbers, 0);
    of_weight = c.scale * sums[2 * p.channels] + v_scale * sums[p.channels];
    of_bias = c.scale * sums[3 * p.channels] + v_scale * sums[0];
  } else {
    of_weight = c.scale * sums[p.channels];
    of_bias = c.scale * sums[0];
  }
}

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
