// A block works on one chunk of both sides at a time, a thread on one logit: batches of logits are small, and
// the launch is what costs. So a single chunk takes one launch, which does all three steps; several chunks
// take three, because of the sums over all of them. The traffic is that of the CPU kernel.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"
#include "gan_loss/gan_loss_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;

// The sum of one member of all chunks' partials, in every thread of the block.
__device__ double total(const GanLossParams& p, int side, double GanLossPartial::* what) {
  double sum = 0;
  for (int64_t chunk = threadIdx.x; chunk < p.chunks; chunk += kThreads)
    sum += p.partials[chunk * p.side_count + side].*what;
  return block_sum<kThreads>(sum);
}

template <class T>
__device__ void means(const GanLossParams& p, int64_t chunk) {
  for (int index = 0; index < p.side_count; ++index) {
    const Range range = part_of(p.sides[index].count, p.chunk, chunk);
    const auto* x = static_cast<const T*>(p.sides[index].logits);
    double sum = 0;
    for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) sum += to_acc(x[i]);
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) p.partials[chunk * p.side_count + index].sum = sum;
  }
}

template <class T, GanTerm K>
__device__ void terms(const GanLossParams& p, int index, int64_t chunk, acc_t<T> mean) {
  using S = acc_t<T>;
  const GanLossSide& side = p.sides[index];
  const auto* x = static_cast<const T*>(side.logits);
  const auto* paired = p.paired ? static_cast<const T*>(p.sides[1 - index].logits) : nullptr;
  const auto* weights = static_cast<const S*>(p.weights);
  auto* slopes = static_cast<S*>(side.slopes);
  auto* losses = p.reduction == GanReduction::none ? static_cast<S*>(p.loss) : nullptr;
  const S slope_scale = S(scale(p, side)), sign = S(side.sign);
  const S common_shift = p.centred ? mean : S(0);
  const S common_threshold = p.needs_means ? mean : S(p.threshold);

  double loss_sum = 0, score_sum = 0, slope_sum = 0, correct = 0;
  const Range range = part_of(side.count, p.chunk, chunk);
  for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) {
    const S v = to_acc(x[i]);
    const S opponent = paired ? to_acc(paired[i]) : S(0);
    GanLogit<S> logit = gan_logit<K>(p, side, v, paired ? opponent : common_shift);
    if (weights) logit.weigh(weights[side.per_weight == 1 ? i : i / side.per_weight]);
    loss_sum += logit.loss;
    score_sum += logit.score;
    slope_sum += logit.slope;
    if (sign * (v - (paired ? opponent : common_threshold)) < 0) ++correct;
    slopes[i] = slope_scale * (p.l2 != 0 ? logit.slope + logit.l2_slope : logit.slope);
    if (losses) {  // one place for both sides, written by the same thread
      const S loss = logit.loss * S(side.factor);
      losses[i] = index == 0 ? loss : losses[i] + loss;
    }
  }
  GanLossPartial sums{};
  sums.loss = block_sum<kThreads>(loss_sum);
  sums.score = block_sum<kThreads>(score_sum);
  sums.correct = block_sum<kThreads>(correct);
  sums.slope = p.centred ? block_sum<kThreads>(slope_sum) : 0;
  if (threadIdx.x == 0) {
    GanLossPartial& partial = p.partials[chunk * p.side_count + index];
    sums.sum = partial.sum;
    partial = sums;
  }
}

// The loss and the statistics from the sums over all chunks.
template <class T>
__device__ void finish_loss(const GanLossParams& p) {
  double loss = 0;
  for (int index = 0; index < p.side_count; ++index) {
    const GanLossSide& side = p.sides[index];
    loss += scale(p, side) * total(p, index, &GanLossPartial::loss);
    if (p.stats) {
      const double score = total(p, index, &GanLossPartial::score) / double(side.count);
      const double accuracy = total(p, index, &GanLossPartial::correct) / double(side.count);
      if (threadIdx.x == 0) p.stats[index] = float(score), p.stats[2 + index] = float(accuracy);
    }
  }
  if (threadIdx.x == 0 && p.reduction != GanReduction::none) *static_cast<acc_t<T>*>(p.loss) = acc_t<T>(loss);
}

// The gradient by way of the mean that the other side's logits are compared with.
template <class T>
__device__ void finish_slopes(const GanLossParams& p, int64_t first_chunk, int64_t chunk_step) {
  for (int index = 0; index < 2; ++index) {
    const GanLossSide& side = p.sides[index];
    const double others = scale(p, p.sides[1 - index]) * total(p, 1 - index, &GanLossPartial::slope);
    const auto share = acc_t<T>(others / double(side.count));
    auto* slopes = static_cast<acc_t<T>*>(side.slopes);
    for (int64_t chunk = first_chunk; chunk < p.chunks; chunk += chunk_step) {
      const Range range = part_of(side.count, p.chunk, chunk);
      for (int64_t i = range.begin + threadIdx.x; i < range.end; i += kThreads) slopes[i] -= share;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) means_kernel(const GanLossParams p) {
  for (int64_t chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x) means<T>(p, chunk);
}

// All of the work if there is one chunk.
template <class T, GanTerm K>
__global__ void __launch_bounds__(kThreads) terms_kernel(const GanLossParams p) {
  using S = acc_t<T>;
  if (p.chunks == 1 && p.needs_means) {
    means<T>(p, 0);
    __syncthreads();
  }
  const auto mean = [&](int index) {
    return p.needs_means ? S(total(p, index, &GanLossPartial::sum) / double(p.sides[index].count)) : S(0);
  };
  const S fake_mean = p.side_count == 2 ? mean(1) : S(0), real_mean = mean(0);
  for (int64_t chunk = blockIdx.x; chunk < p.chunks; chunk += gridDim.x) {
    terms<T, K>(p, 0, chunk, fake_mean);
    if (p.side_count == 2) terms<T, K>(p, 1, chunk, real_mean);
  }
  if (p.chunks == 1) {
    __syncthreads();
    finish_loss<T>(p);
    if (p.centred) finish_slopes<T>(p, 0, 1);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) finish_kernel(const GanLossParams p) {
  if (blockIdx.x == 0) finish_loss<T>(p);
  if (p.centred) finish_slopes<T>(p, blockIdx.x, gridDim.x);
}

}  // namespace

namespace cuda {

void gan_loss_means(const GanLossParams& p, int64_t chunks, void* stream) {
  if (chunks == 1) return;
  dispatch_dtype(p.dtype,
                 [&]<class T>(T*) { launch(means_kernel<T>, grid_size(chunks), kThreads, 0, stream, p); });
}

void gan_loss_terms(const GanLossParams& p, int64_t, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_term(p.term, [&](auto term) {
      launch(terms_kernel<T, term.value>, grid_size(p.chunks), kThreads, 0, stream, p);
    });
  });
}

void gan_loss_finish(const GanLossParams& p, int64_t items, void* stream) {
  if (p.chunks == 1) return;
  dispatch_dtype(p.dtype,
                 [&]<class T>(T*) { launch(finish_kernel<T>, grid_size(items), kThreads, 0, stream, p); });
}

}  // namespace cuda
}  // namespace aigc
