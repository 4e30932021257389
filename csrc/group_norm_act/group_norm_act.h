// y = clamp(gain * act(z)),  z = h*A + B + residual,  h = (x - mean) * r,  r = 1 / sqrt(var + eps)
//
// mean and var (biased) are those of a group of a sample, which has n elements; A = weight*scale and
// B = bias*scale + shift are numbers of a channel of a sample.
//
// Backward. With dz the gradient of z, and <.> the mean over the group:
//     dresidual = dz     dA = sum dz*h     dB = sum dz   (sums over the channel of the sample)
//     dx = r * (A*dz - <A*dz> - h * <A*dz*h>)
//     dweight = sum scale*dA     dbias = sum scale*dB   (sums over the samples)
//     dscale = weight*dA + bias*dB     dshift = dB
//
// Double backward. With v the cotangent of dx, vA = scale*v_weight + weight*v_scale that of dA,
// vB = scale*v_bias + bias*v_scale + v_shift that of dB, and v_residual that of dresidual, what is
// differentiated is sum dz*g with
//     t = r * (v - <v> - h*<v*h>)     g = A*t + vA*h + vB + v_residual
// and so, with dz = f'(z)*dy and e = f''(z)*dy*g, which is 0 where the activation is made of straight pieces:
//     grad_dy = f'(z)*g     grad_residual = e     grad_B = sum e     grad_A = sum e*h + dz*t
//     gh = A*e + dz * (vA - A*r*<v*h>) - r*<A*dz*h>*v
//     grad_x = r * (gh - <gh> - h * (<gh*h> + <A*dz*t>))
//     grad_weight = sum scale*grad_A + v_scale*dA     grad_bias = sum scale*grad_B + v_scale*dB
//     grad_scale = weight*grad_A + bias*grad_B + v_weight*dA + v_bias*dB     grad_shift = grad_B
//
// The variance is never a difference of large numbers: each part of a group is small enough for a cache and
// is read twice, for its mean and for the squared deviations from it; the parts are then joined (Chan, Golub,
// LeVeque 1983, "Algorithms for Computing the Sample Variance"). z is recomputed from x, so no mask is kept.
//
// Traffic (e = element size), where a group does not stay in a cache: forward 3e, backward 5e, double
// backward 10e, and up to 3e of the residual; where it does, 2e, 3e and 5e.
#pragma once

#include "core/activation.h"
#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// Per channel of a sample, in acc_t. With c = x - mean:
//     z = c*kScale + kBias
//     dx = kScale*dz - kConstant - c*kSlope
//     g = kScale * (v - kMeanV - c*kSlopeV) + c*kWeightV + kBiasV
//     grad_x = kScale*e + kOfDz*dz - kOfV*v - kConstant - c*kSlope
enum GroupNormFactor {
  kMean,
  kScale,
  kBias,
  kConstant,
  kSlope,
  kMeanV,
  kSlopeV,
  kWeightV,
  kBiasV,
  kOfDz,
  kOfV,
  kFactors
};

// A pass over memory, or the joining of its sums.
enum class GroupNormStage : int32_t {
  statistics,
  join_statistics,  // mean and rstd where they are not given; factors to kBias
  forward,
  gradient_sums,   // of dz, dz*c
  join_gradients,  // dscale, dshift, kConstant, kSlope
  backward,
  cotangent_sums,   // of v, v*c
  join_cotangents,  // kMeanV to kBiasV
  second_sums,      // of dz, dz*c, dz*v, e, e*c
  join_second,      // grad_scale, grad_shift, the other factors
  double_backward,
  parameters,  // dweight and dbias, from what one of the joins left
};
constexpr int sums_of(GroupNormStage stage) { return stage == GroupNormStage::second_sums ? 5 : 2; }

struct GroupNormNumbers {
  const void* data = nullptr;
  DType dtype = DType::float32;
};
struct GroupNormGradient {
  void* data = nullptr;
  DType dtype = DType::float32;
};

struct GroupNormParams {
  DType dtype = DType::float32;
  Act act = Act::linear;
  double alpha = 0, gain = 1, clamp = -1;  // clamp < 0: none
  double eps = 0;

  // An element is (sample*inner + i)*channels + channel where the channels of a pixel are adjacent (NHWC, NC),
  // else (sample*channels + channel)*inner + i.
  int64_t samples = 0, channels = 0, groups = 1, inner = 0;
  bool channels_inside = false;
  int64_t inner_per_part = 1, parts = 1;  // parts = ceil(inner / inner_per_part)
  int64_t group_channels = 1;             // channels / groups

  const GroupNormStage* stages = nullptr;  // of group_norm_units
  int stage_count = 0;
  GroupNormStage stage = GroupNormStage::statistics;  // of group_norm_stage

  const void* x = nullptr;
  const void* residual = nullptr;  // or null
  const void* dy = nullptr;
  const void* v = nullptr;
  const void* v_residual = nullptr;  // or null
  void* y = nullptr;                 // or dx, or grad_x
  void* grad_dy = nullptr;
  void* dresidual = nullptr;  // or grad_residual, or null

  GroupNormNumbers weight, bias, v_weight, v_bias;   // [channels], or null
  GroupNormNumbers scale, shift, v_scale, v_shift;   // [samples][channels], or null
  GroupNormGradient dweight, dbias, dscale, dshift;  // or their gradients, or null

  bool statistics_given = false;
  double* mean = nullptr;  // [samples][groups]
  double* rstd = nullptr;
  void* factors = nullptr;       // [samples][kFactors][channels]
  int sums = 2;                  // room for the partials of a stage: another unit may be at another stage
  double* partials = nullptr;    // [samples][parts][sums][channels], or the statistics'
  double* cotangents = nullptr;  // [samples][groups][2]: kMeanV and kSlopeV
};

AIGC_INLINE int64_t group_elements(const GroupNormParams& p) { return p.group_channels * p.inner; }

// Elements of a part of a group whose elements are adjacent.
constexpr int64_t kStatisticsPart = 8192;
// Parts of a group, or of a sample where channels are inside; partials [samples][parts][2][channels] there,
// else [samples][groups][parts][2].
AIGC_INLINE int64_t statistics_parts(const GroupNormParams& p) {
  return p.channels_inside ? p.parts : ceil_div(group_elements(p), kStatisticsPart);
}

// What is independent of everything else: a group, or a sample where channels are inside.
AIGC_INLINE int64_t unit_count(const GroupNormParams& p) {
  return p.channels_inside ? p.samples : p.samples * p.groups;
}
AIGC_INLINE int64_t item_count(const GroupNormParams& p, GroupNormStage stage) {
  switch (stage) {
    case GroupNormStage::statistics:
      return unit_count(p) * statistics_parts(p);
    case GroupNormStage::join_statistics:
    case GroupNormStage::join_gradients:
    case GroupNormStage::join_cotangents:
    case GroupNormStage::join_second:
      return p.samples * p.groups;
    case GroupNormStage::parameters:
      return p.channels;
    default:
      return p.samples * (p.channels_inside ? 1 : p.channels) * p.parts;
  }
}

}  // namespace aigc

// Items are the stage's: parts of a group for the statistics, groups for a join, channels for the parameters,
// else parts of a channel, or of a sample where channels are inside.
AIGC_KERNEL(group_norm_stage, GroupNormParams)
// All stages of one unit after the other, while it is in the cache. On the CPU only.
AIGC_KERNEL(group_norm_units, GroupNormParams)
