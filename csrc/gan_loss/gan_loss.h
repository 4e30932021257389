// Adversarial losses with their gradient and the statistics of a training loop, in one pass over the logits.
//
// A side is a batch of logits x that should be judged real (sign -1) or fake (sign +1). With s = softplus and
// u = sign * (x - shift), a logit's loss is w * (phi(x) + l2/2 x^2), where
//     softplus   phi = s(u) + smoothing * x        slope phi' = sign * sigmoid(u) + smoothing
//     hinge      phi = max(1 + u, 0)                     phi' = sign * [1 + u > 0]
//     square     phi = (x - target)^2 / 2                phi' = x - target
//     linear     phi = u                                 phi' = sign
// and a side's loss is factor * (mean or sum over its logits). The loss is that of one side (a generator's)
// or of two.
//
// The shift is 0, except where real and fake are compared:
//     paired     with the other side's logit at the same place. Both sides then have the same s(u), which is
//                counted once, and each has its own slope.
//     centred    with the mean of the other side's logits, which adds to the gradient of each logit:
//                d/dx_i = ... - (sum of w * phi' over the other side, scaled as its loss) / count
//
// Sums run in a fixed order over chunks of both sides; partial sums are float64.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

enum class GanTerm : int32_t { softplus, hinge, square, linear };
enum class GanReduction : int32_t { mean, sum, none };

struct GanLossSide {
  const void* logits = nullptr;
  void* slopes = nullptr;  // acc_t<T>: the gradient of the loss (of its sum, for reduction none)
  int64_t count = 0;       // of logits
  int64_t per_weight = 1;  // logits that share a weight
  double sign = 1, target = 0, smoothing = 0, factor = 1;
  bool counts_phi = true;
};

struct GanLossPartial {
  double sum;      // of the logits, for their mean
  double loss;     // of w * (phi + l2/2 x^2)
  double score;    // of x, or of sigmoid(x)
  double correct;  // logits on their side of the threshold
  double slope;    // of w * phi'
};

struct GanLossParams {
  DType dtype = DType::float32;
  GanTerm term = GanTerm::softplus;
  GanReduction reduction = GanReduction::mean;
  bool paired = false, centred = false;
  bool needs_means = false;     // for the shift or for the threshold
  bool is_probability = false;  // score is sigmoid(x)
  double threshold = 0;         // for the accuracy; if paired the shift, if needs_means the other side's mean
  double l2 = 0;

  int side_count = 2;
  GanLossSide sides[2];           // real, fake
  const void* weights = nullptr;  // acc_t<T>

  int64_t chunk = 1, chunks = 1;       // an item is `chunk` logits of each side
  GanLossPartial* partials = nullptr;  // [chunks][side_count]
  void* loss = nullptr;                // acc_t<T>: one number, or one for each logit
  float* stats = nullptr;              // mean score real, fake; accuracy real, fake
};

}  // namespace aigc

AIGC_KERNEL(gan_loss_means, GanLossParams)   // items: chunks; only where needs_means
AIGC_KERNEL(gan_loss_terms, GanLossParams)   // items: chunks
AIGC_KERNEL(gan_loss_finish, GanLossParams)  // items: chunks if centred, else one
