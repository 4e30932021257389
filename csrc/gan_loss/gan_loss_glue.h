// The losses of gan_loss for other ops, which fill in logits, slopes, counts, loss and statistics themselves.
#pragma once

#include <string>

#include "gan_loss/gan_loss.h"
#include "glue/tensor.h"

namespace aigc {

// Does the loss compare each real logit with a fake one, so that there must be as many? Does it compare the
// two batches, so that the generator's loss is the discriminator's with real and fake swapped?
bool compares_pairs(const std::string& kind, const char* op);
bool compares_batches(const std::string& kind, const char* op);

// Of a discriminator, whose sides are real and fake; and of a generator, which has a side alone. They check
// what they are given; the reduction is the mean.
GanLossParams discriminator_loss_params(const std::string& kind, double label_smoothing, double l2_weight,
                                        const char* op);
GanLossParams generator_loss_params(const std::string& kind, const char* op);

// Runs the kernels on params that are otherwise complete. The tensor says where.
void run_gan_loss(GanLossParams& params, const Tensor& like);

}  // namespace aigc
