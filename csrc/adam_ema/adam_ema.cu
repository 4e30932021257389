// One launch for all tensors (one for every 440 of them): pointers and sizes are kernel parameters; step,
// learning rate and decays are read on the device. A block works on kBlock elements of one tensor, so that
// its accesses are as well aligned as the tensor. The traffic is that of the CPU kernel.
#include "adam_ema/adam_ema.h"
#include "adam_ema/adam_formula.h"
#include "core/cuda_launch.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 4;        // elements of a thread: 16 bytes of each float32 state
constexpr int64_t kBlock = 2048;  // elements of a block
// A kernel's parameters may take 4 KB, or 32,764 bytes from CUDA 12.1 and its drivers on. The small size
// is cheaper to launch.
constexpr int kFewSlots = 48, kMostSlots = 440;

struct Slot {
  void *param, *exp_avg, *exp_avg_sq, *ema;
  const void* grad;
  void* step;
  int64_t numel;
  int32_t first_block;
  DType dtype;
  bool step_is_float64;

  // Either may be null.
  static Slot of(const AdamSlot* tensors, const AdamNumber* step) {
    Slot slot{};
    if (tensors) {
      slot.param = tensors->param;
      slot.exp_avg = tensors->exp_avg;
      slot.exp_avg_sq = tensors->exp_avg_sq;
      slot.ema = tensors->ema;
      slot.grad = tensors->grad;
      slot.numel = tensors->numel;
      slot.dtype = tensors->dtype;
    }
    if (step) {
      slot.step = step->at;
      slot.step_is_float64 = step->is_float64;
    }
    return slot;
  }
  __device__ AdamNumber step_number() const { return {0, step, step_is_float64}; }
};

template <int kSlots>
struct Batch {
  Slot slots[kSlots];
  int count = 0;
  int32_t blocks = 0;
};

template <int kSlots>
__device__ const Slot& slot_of_block(const Batch<kSlots>& batch, int32_t block) {
  int low = 0, high = batch.count - 1;  // searches the last slot that begins at or before `block`
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (batch.slots[middle].first_block <= block)
      low = middle;
    else
      high = middle - 1;
  }
  return batch.slots[low];
}

template <class T>
__device__ void update(const Slot& slot, const AdamEmaParams& p, int64_t begin, double bias_correction1,
                       double root_bias_correction2) {
  using S = acc_t<T>;
  auto* param = static_cast<T*>(slot.param);
  const auto* grad = static_cast<const T*>(slot.grad);
  auto* exp_avg = static_cast<S*>(slot.exp_avg);
  auto* exp_avg_sq = static_cast<S*>(slot.exp_avg_sq);
  auto* ema = static_cast<S*>(slot.ema);
  const AdamStep<S> step(p, bias_correction1, root_bias_correction2);
  const int64_t end = min(begin + kBlock, slot.numel);
  for (int64_t i = begin + int(threadIdx.x) * kVector; i < end; i += kThreads * kVector) {
    const int64_t n = end - i;
    S w[kVector], g[kVector], m[kVector], v[kVector], e[kVector] = {};
    load<kVector>(param + i, n, w);
    load<kVector>(grad + i, n, g);
    load<kVector>(exp_avg + i, n, m);
    load<kVector>(exp_avg_sq + i, n, v);
    if (ema) load<kVector>(ema + i, n, e);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      step.update(w[j], g[j], m[j], v[j]);
      e[j] = step.averaged(e[j], w[j]);
    }
    store<kVector>(param + i, n, w);
    store<kVector>(exp_avg + i, n, m);
    store<kVector>(exp_avg_sq + i, n, v);
    if (ema) store<kVector>(ema + i, n, e);
  }
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const __grid_constant__ Batch<kSlots> batch, const AdamEmaParams p) {
  if (p.found_inf && *p.found_inf != 0) return;
  __shared__ SharedArray<double, 2> corrections;
  const Slot& slot = slot_of_block(batch, int32_t(blockIdx.x));
  if (threadIdx.x == 0 || threadIdx.x == 32) {
    const double step = read(slot.step_number());
    if (threadIdx.x == 0)
      corrections[0] = bias_correction(read(p.beta1), step);
    else
      corrections[1] = ::sqrt(bias_correction(read(p.beta2), step));
  }
  __syncthreads();
  const int64_t begin = (int32_t(blockIdx.x) - slot.first_block) * kBlock;
  dispatch_dtype(slot.dtype, [&]<class T>(T*) { update<T>(slot, p, begin, corrections[0], corrections[1]); });
}

// Increments the steps, or counts a skipped call. Only one batch of a call has a `skipped` that is not null.
template <int kSlots>
__global__ void __launch_bounds__(kThreads)
    advance_kernel(const __grid_constant__ Batch<kSlots> batch, const float* found_inf, int64_t* skipped) {
  if (found_inf && *found_inf != 0) {
    if (skipped && threadIdx.x == 0) ++*skipped;
    return;
  }
  for (int i = int(threadIdx.x); i < batch.count; i += kThreads) increment(batch.slots[i].step_number());
}

template <int kSlots>
__global__ void __launch_bounds__(kThreads)
    nonfinite_kernel(const __grid_constant__ Batch<kSlots> batch, float* found) {
  const Slot& slot = slot_of_block(batch, int32_t(blockIdx.x));
  const Range block = part_of(slot.numel, kBlock, int32_t(blockIdx.x) - slot.first_block);
  dispatch_dtype(slot.dtype, [&]<class T>(T*) {
    using S = acc_t<T>;
    const auto* grad = static_cast<const T*>(slot.grad);
    S sum = 0;
    for (int64_t i = block.begin + int(threadIdx.x) * kVector; i < block.end; i += kThreads * kVector) {
      S g[kVector];
      load<kVector>(grad + i, block.end - i, g);
      for (int j = 0; j < kVector; ++j) sum += zero_if_finite(g[j]);
    }
    if (sum != 0) *found = 1;  // all threads that find one write the same value
  });
}

// Splits `count` slots into batches and calls run(batch) for each. A slot has tensors[i], or none if that is
// null, and steps[i * step_stride]. Tensors without elements are left out.
template <class Run>
void for_batches(int64_t count, const AdamSlot* tensors, const AdamNumber* steps, int64_t step_stride,
                 Run&& run) {
  const auto all = [&]<int kSlots>(Batch<kSlots> batch) {
    for (int64_t i = 0; i < count; ++i) {
      if (tensors && tensors[i].numel == 0) continue;
      Slot slot = Slot::of(tensors ? &tensors[i] : nullptr, steps ? &steps[i * step_stride] : nullptr);
      slot.first_block = batch.blocks;
      batch.blocks += int32_t(ceil_div(slot.numel, kBlock));
      batch.slots[batch.count++] = slot;
      if (batch.count == kSlots) {
        run(batch);
        batch.count = batch.blocks = 0;
      }
    }
    if (batch.count > 0) run(batch);
  };
  count <= kFewSlots ? all(Batch<kFewSlots>()) : all(Batch<kMostSlots>());
}

}  // namespace

namespace cuda {

void adam_ema_advance(const AdamEmaParams& p, int64_t, void* stream) {
  int64_t* skipped = p.skipped;
  for_batches(p.step_count, nullptr, p.steps, 1, [&]<int kSlots>(const Batch<kSlots>& batch) {
    launch(advance_kernel<kSlots>, 1, kThreads, 0, stream, batch, p.found_inf, skipped);
    skipped = nullptr;
  });
}

void adam_ema_update(const AdamEmaParams& p, int64_t, void* stream) {
  const int64_t step_stride = p.step_count == 1 ? 0 : 1;
  for_batches(p.slot_count, p.slots, p.steps, step_stride, [&]<int kSlots>(const Batch<kSlots>& batch) {
    launch(update_kernel<kSlots>, unsigned(batch.blocks), kThreads, 0, stream, batch, p);
  });
}

void any_nonfinite_blocks(const AnyNonfiniteParams& p, int64_t, void* stream) {
  for_batches(p.slot_count, p.slots, nullptr, 0, [&]<int kSlots>(const Batch<kSlots>& batch) {
    launch(nonfinite_kernel<kSlots>, unsigned(batch.blocks), kThreads, 0, stream, batch, p.found);
  });
}

}  // namespace cuda
}  // namespace aigc
