// What batch_norm_act computes for a channel, on the CPU and in CUDA.
#pragma once

#include "batch_norm_act/batch_norm_act.h"
#include "core/math.h"

namespace aigc {
inline namespace AIGC_MATH_NAMESPACE {

// What a part adds to the sums for a channel's mean and variance, by its partials.
AIGC_HOST_DEVICE inline double mean_term(const BatchNormParams& p, int64_t part, int64_t channel) {
  return double(part_at(p, part).size()) * p.partials[part * 2 * p.channels + channel];
}
AIGC_HOST_DEVICE inline double variance_term(const BatchNormParams& p, int64_t part, int64_t channel,
                                             double mean) {
  const double* partial = p.partials + part * 2 * p.channels + channel;
  const double distance = partial[0] - mean;
  return partial[p.channels] + double(part_at(p, part).size()) * distance * distance;
}

// The factors of a channel, in S. `r` is 1 / sqrt(var + eps).
template <class S>
struct ChannelFactors {
  S* at;
  int64_t channels;

  AIGC_HOST_DEVICE ChannelFactors(const BatchNormParams& p, int64_t channel)
      : at(static_cast<S*>(p.factors) + channel), channels(p.channels) {}

  AIGC_HOST_DEVICE void set_statistics(double mean, double var, double eps, double weight, double bias) {
    at[kMean * channels] = S(mean);
    at[kScale * channels] = S(weight / ::sqrt(var + eps));
    at[kBias * channels] = S(bias);
  }
  // From the sums of dz and of dz * (x - mean) over the `count` elements of the channel.
  AIGC_HOST_DEVICE void set_constant(double weight, double r, double count, double sum) {
    at[kConstant * channels] = S(weight * r / count * sum);
  }
  AIGC_HOST_DEVICE void set_slope(double weight, double r, double count, double product) {
    at[kSlope * channels] = S(weight * r / count * product * r * r);
  }
};

}  // namespace AIGC_MATH_NAMESPACE
}  // namespace aigc
