// y = clamp(gain * act(z)),  z = (x - mean) * r * weight + bias,  r = 1 / sqrt(var + eps), per channel.
//
// mean and var are given, or those of the batch (var biased: over the channel's n elements). Derivatives,
// with dz the gradient of z and h = (x - mean) * r:
//     dbias = sum dz     dweight = sum dz*h
//     dx = weight*r*dz, minus weight*r/n * (dbias + h * dweight) if mean and var are the batch's
// z is recomputed from x, so no mask is kept.
//
// The variance is never a difference of large numbers: each part of a channel is small enough for a cache and
// is read twice, for its mean and for the squared deviations from it; the parts are then joined (Chan, Golub,
// LeVeque 1983, "Algorithms for Computing the Sample Variance").
//
// Traffic (e = element size): forward 2e, or 3e with batch statistics; backward 3e, or 5e with batch
// statistics or gradients of the parameters.
#pragma once

#include "core/activation.h"
#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// Per channel, in acc_t: z = (x - mean) * scale + bias, dx = scale * dz - constant - (x - mean) * slope.
enum BatchNormFactor { kMean, kScale, kBias, kConstant, kSlope, kFactors };

struct BatchNormParams {
  DType dtype = DType::float32;
  Act act = Act::linear;
  double alpha = 0, gain = 1, clamp = -1;  // clamp < 0: none
  double eps = 0;
  bool of_batch = false;  // mean and var are the batch's

  int64_t outer = 0, channels = 0, inner = 0;  // element = (outer * channels + channel) * inner + i
  int64_t outer_per_part = 1, inner_per_part = 1;

  const void* x = nullptr;
  const void* dy = nullptr;
  void* y = nullptr;  // or dx

  // [channels], or null; their dtype need not be that of x
  DType weight_dtype = DType::float32, bias_dtype = DType::float32, statistics_dtype = DType::float64;
  const void* weight = nullptr;
  const void* bias = nullptr;
  const void* mean = nullptr;
  const void* var = nullptr;
  void* dweight = nullptr;
  void* dbias = nullptr;

  double* batch_mean = nullptr;  // [channels], written
  double* batch_var = nullptr;
  void* factors = nullptr;     // [kFactors][channels]
  double* partials = nullptr;  // [parts][2][channels]: mean and squares, or the sums of dz and dz*(x - mean)
};

AIGC_INLINE int64_t inner_parts(const BatchNormParams& p) { return ceil_div(p.inner, p.inner_per_part); }
AIGC_INLINE int64_t part_count(const BatchNormParams& p) {
  return ceil_div(p.outer, p.outer_per_part) * inner_parts(p);
}

// Where the channels of a pixel are adjacent (NHWC, NC), a row is a pixel; else it is a channel of a sample,
// in pieces that are long enough for a block of threads.
AIGC_INLINE bool channels_inside(const BatchNormParams& p) { return p.inner == 1; }
constexpr int64_t kPieceLength = 8192;
AIGC_INLINE int64_t piece_count(const BatchNormParams& p) { return ceil_div(p.inner, kPieceLength); }

// The elements that a part has of each channel.
struct BatchNormPart {
  Range outer, inner;
  AIGC_INLINE int64_t size() const { return outer.size() * inner.size(); }
};
AIGC_INLINE BatchNormPart part_at(const BatchNormParams& p, int64_t index) {
  const int64_t in_row = inner_parts(p);
  return {part_of(p.outer, p.outer_per_part, index / in_row),
          part_of(p.inner, p.inner_per_part, index % in_row)};
}

}  // namespace aigc

// Items are parts where channels are inside, else parts times channels:
AIGC_KERNEL(batch_norm_statistics, BatchNormParams)     // partials of mean and squares
AIGC_KERNEL(batch_norm_gradient_sums, BatchNormParams)  // partials of dz and dz*(x - mean)
// Items are channels:
AIGC_KERNEL(batch_norm_join_statistics, BatchNormParams)  // batch_mean and _var if of_batch; factors to kBias
AIGC_KERNEL(batch_norm_join_gradients, BatchNormParams)   // dweight, dbias; if of_batch the other factors
// Items are rows where channels are inside, else pieces of rows:
AIGC_KERNEL(batch_norm_act_forward, BatchNormParams)
AIGC_KERNEL(batch_norm_act_backward, BatchNormParams)
