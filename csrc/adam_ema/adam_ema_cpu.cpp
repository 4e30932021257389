#include "adam_ema/adam_ema.h"

#include "core/math.h"
#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

double read(const AdamNumber& number) {
  if (number.at == nullptr) return number.value;
  return number.is_float64 ? *static_cast<double*>(number.at) : double(*static_cast<float*>(number.at));
}

struct Hyperparameters {
  double lr, beta1, beta2, ema_decay;
  double bias_correction1, root_bias_correction2;

  // In double precision, as torch.optim's fused kernel computes them.
  Hyperparameters(const AdamEmaParams& p, double step)
      : lr(read(p.lr)),
        beta1(read(p.beta1)),
        beta2(read(p.beta2)),
        ema_decay(read(p.ema_decay)),
        bias_correction1(1 - ::pow(beta1, step)),
        root_bias_correction2(::sqrt(1 - ::pow(beta2, step))) {}
};

// a + weight * (b - a), from the nearer end, as torch.lerp
template <class V, class S>
inline V lerp(V a, V b, S weight) {
  return weight < S(0.5) ? a + weight * (b - a) : b + (weight - S(1)) * (b - a);
}

template <class T>
void update(const AdamSlot& slot, const AdamEmaParams& p, const Hyperparameters& h, int64_t begin,
            int64_t end) {
  using S = acc_t<T>;
  auto* param = static_cast<T*>(slot.param);
  const auto* grad = static_cast<const T*>(slot.grad);
  auto* exp_avg = static_cast<S*>(slot.exp_avg);
  auto* exp_avg_sq = static_cast<S*>(slot.exp_avg_sq);
  auto* ema = static_cast<S*>(slot.ema);
  const S decay = S(1 - h.lr * p.weight_decay), step_size = S(h.lr / h.bias_correction1), eps = S(p.eps);
  const S weight1 = S(1 - h.beta1), weight2 = S(1 - h.beta2), beta2 = S(h.beta2);
  // A second division per element would cost a third of the speed.
  const S scale2 = S(1 / h.root_bias_correction2);
  const S ema_weight = S(1 - h.ema_decay);
  const auto vector = [&](int64_t i, int64_t n) {
    const Vec<T> g = load_upto(grad + i, n);
    const Vec<T> m = lerp(load_upto(exp_avg + i, n), g, weight1);
    const Vec<T> v = weight2 * g * g + beta2 * load_upto(exp_avg_sq + i, n);
    const Vec<T> w = load_upto(param + i, n) * decay - step_size * m / (sqrt(v) * scale2 + eps);
    store_upto(exp_avg + i, m, n);
    store_upto(exp_avg_sq + i, v, n);
    store_upto(param + i, w, n);
    if (ema) store_upto(ema + i, lerp(load_upto(ema + i, n), w, ema_weight), n);
  };
  int64_t i = begin;
  for (; i + kWidth<T> <= end; i += kWidth<T>) vector(i, kWidth<T>);
  if (i < end) vector(i, end - i);
}

// Calls f(slot, index, begin, end) for the part of each slot that lies in the blocks [first, last).
template <class P, class F>
void for_slots(const P& p, int64_t first, int64_t last, F&& f) {
  const int64_t begin = first * p.block, end = last * p.block;
  for (int64_t index = 0; index < p.slot_count; ++index) {
    const AdamSlot& slot = p.slots[index];
    const int64_t from = max(begin - slot.offset, 0), to = min(end - slot.offset, slot.numel);
    if (from < to) f(slot, index, from, to);
  }
}

template <class T>
bool any_nonfinite(const T* x, int64_t begin, int64_t end) {
  constexpr int kChains = 4;  // independent additions, or their latency would set the pace
  Vec<T> sums[kChains] = {};
  int64_t i = begin;
  // 0 * x is a zero where x is finite, else NaN, and a sum keeps a NaN.
  for (; i + kChains * kWidth<T> <= end; i += kChains * kWidth<T>)
    for (int chain = 0; chain < kChains; ++chain)
      sums[chain] += acc_t<T>(0) * load(x + i + chain * kWidth<T>);
  for (; i < end; i += kWidth<T>) sums[0] += acc_t<T>(0) * load_upto(x + i, end - i);
  return horizontal_sum(sums[0] + sums[1] + sums[2] + sums[3]) != 0;
}

}  // namespace

void adam_ema_advance(const AdamEmaParams& p, int64_t, int64_t) {
  if (p.found_inf && *p.found_inf != 0) {
    if (p.skipped) ++*p.skipped;
    return;
  }
  for (int64_t i = 0; i < p.step_count; ++i) {
    if (p.steps[i].is_float64)
      *static_cast<double*>(p.steps[i].at) += 1;
    else
      *static_cast<float*>(p.steps[i].at) += 1;
  }
}

void adam_ema_update(const AdamEmaParams& p, int64_t begin, int64_t end) {
  if (p.found_inf && *p.found_inf != 0) return;
  double step = read(p.steps[0]);
  Hyperparameters h(p, step);
  for_slots(p, begin, end, [&](const AdamSlot& slot, int64_t index, int64_t from, int64_t to) {
    const double own_step = read(p.steps[p.step_count == 1 ? 0 : index]);
    if (own_step != step) h = Hyperparameters(p, step = own_step);
    dispatch_dtype(slot.dtype, [&]<class T>(T*) { update<T>(slot, p, h, from, to); });
  });
}

void any_nonfinite_blocks(const AnyNonfiniteParams& p, int64_t begin, int64_t end) {
  for_slots(p, begin, end, [&](const AdamSlot& slot, int64_t, int64_t from, int64_t to) {
    dispatch_dtype(slot.dtype, [&]<class T>(T*) {
      if (any_nonfinite(static_cast<const T*>(slot.grad), from, to)) {
        const float one = 1;
        __atomic_store(p.found, &one, __ATOMIC_RELAXED);  // several threads may find one
      }
    });
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
