#include "adam_ema/adam_ema.h"
#include "adam_ema/adam_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// The bias corrections of a step. Most slots have the same step.
struct Corrections {
  double step, first, root_second;

  Corrections(const AdamEmaParams& p, double step)
      : step(step),
        first(bias_correction(read(p.beta1), step)),
        root_second(::sqrt(bias_correction(read(p.beta2), step))) {}
};

template <class T>
void update(const AdamSlot& slot, const AdamEmaParams& p, const Corrections& corrections, int64_t begin,
            int64_t end) {
  using S = acc_t<T>;
  auto* param = static_cast<T*>(slot.param);
  const auto* grad = static_cast<const T*>(slot.grad);
  auto* exp_avg = static_cast<S*>(slot.exp_avg);
  auto* exp_avg_sq = static_cast<S*>(slot.exp_avg_sq);
  auto* ema = static_cast<S*>(slot.ema);
  const AdamStep<S> step(p, corrections.first, corrections.root_second);
  for_vectors<T>(begin, end, [&](int64_t i, auto whole) {
    const int64_t n = end - i;
    Vec<T> w = load_lanes(param + i, n, whole), m = load_lanes(exp_avg + i, n, whole),
           v = load_lanes(exp_avg_sq + i, n, whole);
    step.update(w, load_lanes(grad + i, n, whole), m, v);
    store_lanes(exp_avg + i, m, n, whole);
    store_lanes(exp_avg_sq + i, v, n, whole);
    store_lanes(param + i, w, n, whole);
    if (ema) store_lanes(ema + i, step.averaged(load_lanes(ema + i, n, whole), w), n, whole);
  });
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
  for (; i + kChains * kWidth<T> <= end; i += kChains * kWidth<T>)
    for (int chain = 0; chain < kChains; ++chain)
      sums[chain] += zero_if_finite(load(x + i + chain * kWidth<T>));
  for (; i < end; i += kWidth<T>) sums[0] += zero_if_finite(load_upto(x + i, end - i));
  return horizontal_sum(sums[0] + sums[1] + sums[2] + sums[3]) != 0;
}

}  // namespace

void adam_ema_advance(const AdamEmaParams& p, int64_t, int64_t) {
  if (p.found_inf && *p.found_inf != 0) {
    if (p.skipped) ++*p.skipped;
    return;
  }
  for (int64_t i = 0; i < p.step_count; ++i) increment(p.steps[i]);
}

void adam_ema_update(const AdamEmaParams& p, int64_t begin, int64_t end) {
  if (p.found_inf && *p.found_inf != 0) return;
  Corrections corrections(p, read(p.steps[0]));
  for_slots(p, begin, end, [&](const AdamSlot& slot, int64_t index, int64_t from, int64_t to) {
    const double step = read(p.steps[p.step_count == 1 ? 0 : index]);
    if (step != corrections.step) corrections = Corrections(p, step);
    dispatch_dtype(slot.dtype, [&]<class T>(T*) { update<T>(slot, p, corrections, from, to); });
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
