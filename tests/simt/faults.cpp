// Kernels with one planted fault each, and correct ones beside them, for tests/simt/test_simt.py.
#include <cuda_pipeline_primitives.h>

#include <cstdio>
#include <functional>
#include <map>
#include <stdexcept>
#include <string>

#include "core/cuda_launch.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"

namespace {

using aigc::dynamic_shared;
using aigc::launch;
using aigc::SharedArray;
using aigc::SharedSpan;

// The sum of each block's 64 inputs, by a tree in shared memory.
template <bool kBarrier>
__global__ void block_sum(const float* in, float* out) {
  __shared__ SharedArray<float, 64> shared;
  shared[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    if (int(threadIdx.x) < step) shared[threadIdx.x] += shared[threadIdx.x + step];
    if (kBarrier) __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = shared[0];
}

// Correct only if the blocks run one after another, in the order of their numbers.
__global__ void sum_of_the_blocks_before(const float* in, float* out) {
  const int i = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  out[i] = in[i] + (i > 0 ? out[i - 1] : 0.0f);
}
// Correct in any order.
__global__ void number_of_the_block(const float* in, float* out) {
  const int i = int((blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x);
  out[i] = in[i];
}

__global__ void warp_sum(const float* in, float* out) {
  float x = in[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = x;
}

// The halves of a warp execute different collectives, and different numbers of them: lanes 0-15 form their
// sum, lanes 16-31 take their neighbours' values.
__global__ void halves_of_a_warp(const float* in, float* out) {
  float x = in[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    for (int step = 8; step > 0; step /= 2) x += __shfl_xor_sync(0xffffu, x, step);
  } else {
    x = __shfl_xor_sync(0xffff0000u, x, 1);
    if (__any_sync(0xffff0000u, x < 0)) x = -1;
  }
  __syncwarp();
  out[threadIdx.x] = x;
}
// Interleaved lanes, of which one half is far ahead of the other.
__global__ void odd_and_even_lanes(const float* in, float* out) {
  const unsigned mask = threadIdx.x % 2 ? 0xaaaaaaaau : 0x55555555u;
  float x = in[threadIdx.x];
  for (int i = threadIdx.x % 2 ? 0 : 7; i < 8; ++i)
    x = __shfl_sync(mask, x, (threadIdx.x + 2) % 32);  // from the next lane of the mask
  out[threadIdx.x] = x;
}

template <int kWidth>
__global__ void shuffle_down(const float* in, float* out) {
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, in[threadIdx.x], 3, kWidth);
}
template <int kWidth>
__global__ void shuffle_up(const float* in, float* out) {
  out[threadIdx.x] = __shfl_up_sync(0xffffffffu, in[threadIdx.x], 3, kWidth);
}
template <int kWidth>
__global__ void shuffle_xor(const float* in, float* out) {
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 12, kWidth);
}
template <int kWidth>
__global__ void shuffle_from(const float* in, float* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], 13, kWidth);
}

// The result of each reduction and vote in both warps. The second warp has eight lanes.
__global__ void reductions(const float* in, float* out) {
  const int x = int(in[threadIdx.x]) - 20;
  const unsigned u = unsigned(in[threadIdx.x]) | 64u, all = 0xffffffffu;
  const float results[] = {float(__reduce_add_sync(all, x)),   float(__reduce_min_sync(all, x)),
                           float(__reduce_max_sync(all, x)),   float(__reduce_min_sync(all, unsigned(x))),
                           float(__reduce_and_sync(all, u)),   float(__reduce_or_sync(all, u)),
                           float(__reduce_xor_sync(all, u)),   float(__ballot_sync(all, x < -16)),
                           float(__any_sync(all, x < -16)),    float(__all_sync(all, x < -16)),
                           float(__match_any_sync(all, x / 4))};
  if (threadIdx.x % 32 == 0)
    for (int i = 0; i < 11; ++i) out[threadIdx.x + i] = results[i];
}

__global__ void lane_that_ended(const float* in, float* out) {
  if (threadIdx.x == 37) return;
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, in[threadIdx.x], 1);
}
__global__ void lane_outside_of_the_mask(const float* in, float* out) {
  if (threadIdx.x % 32 < 24) out[threadIdx.x] = __shfl_down_sync(0x00ffffffu, in[threadIdx.x], 8);
}
__global__ void lane_that_does_not_exist(const float* in, float* out) {  // in a block of 40
  out[threadIdx.x] = __shfl_down_sync(0xffffffffu, in[threadIdx.x], 8);
}
__global__ void masks_that_overlap(const float* in, float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x1ffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_sync(mask, in[threadIdx.x], 16);
}
__global__ void other_collectives(const float* in, float* out) {
  out[threadIdx.x] = threadIdx.x % 2 ? float(__any_sync(0xffffffffu, 1)) : float(__all_sync(0xffffffffu, 1));
  out[threadIdx.x] += in[threadIdx.x];
}
__global__ void barrier_and_collective(const float* in, float* out) {
  if (threadIdx.x == 3)
    __syncthreads();
  else
    __syncwarp();
  out[threadIdx.x] = in[threadIdx.x];
}

// Each thread copies one element ahead of the one that it processes; in[64..] is not read.
template <bool kWait, bool kBarrier, bool kCommit>
__global__ void pipeline(const float* in, float* out) {
  __shared__ SharedArray<SharedArray<float, 64, 16>, 2> buffer;
  const int i = int(threadIdx.x);
  const auto copy = [&](int stage) {
    __pipeline_memcpy_async(buffer[stage % 2].at(i, 1), in + stage * 16 + i % 16, 4, i / 16 == 3 ? 4 : 0);
    if (kCommit) __pipeline_commit();
  };
  copy(0);
  float sum = 0;
  for (int stage = 0; stage < 4; ++stage) {
    if (stage < 3) copy(stage + 1);
    if (kWait) __pipeline_wait_prior(stage < 3 ? 1 : 0);
    __syncthreads();
    sum += buffer[stage % 2][63 - i];
    if (kBarrier) __syncthreads();
  }
  out[i] = sum;
}
__global__ void wide_copies(const float* in, float* out) {
  const auto buffer = dynamic_shared<float>();
  const int i = int(threadIdx.x) * 4;
  if (i < 64) __pipeline_memcpy_async(buffer.at(i, 4), in + i, 16, i == 60 ? 4 : 0);
  __pipeline_commit();
  __pipeline_wait_prior(0);
  __syncthreads();
  out[threadIdx.x] = buffer[threadIdx.x];
}
__global__ void misaligned_copy(const float* in, float* out) {
  __shared__ SharedArray<float, 64, 16> buffer;
  __pipeline_memcpy_async(buffer.at(0, 4), in + 1, 16);
  out[threadIdx.x] = 0;
}
__global__ void copy_of_a_wrong_size(const float* in, float* out) {
  __shared__ SharedArray<float, 64, 16> buffer;
  __pipeline_memcpy_async(buffer.at(0, 3), in, 12);
  out[threadIdx.x] = 0;
}
__global__ void copy_to_global_memory(const float* in, float* out) {
  __pipeline_memcpy_async(out + threadIdx.x, in + threadIdx.x, 4);
}

__global__ void divergent_barrier(const float* in, float* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void shuffle_without_some_lanes(const float* in, float* out) {
  float x = in[threadIdx.x];
  if (threadIdx.x % 32 < 20) x += __shfl_xor_sync(0xffffffffu, x, 1);
  out[threadIdx.x] = x;
}

__global__ void mask_without_the_caller(const float* in, float* out) {
  out[threadIdx.x] = __shfl_sync(0x1u, in[threadIdx.x], 0);
}

// Off by one: the last element is never written to shared memory. A template, like the ops' kernels.
template <class T>
__global__ void reads_what_nobody_wrote(const float* in, float* out) {
  __shared__ SharedArray<T, 64> shared;
  if (threadIdx.x < 63) shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

// Reverses 64 inputs by way of both kinds of shared memory, 256 bytes of each.
__device__ void exchange(SharedSpan<float> static_part, SharedSpan<float> dynamic_part, const float* in,
                         float* out) {
  const int i = int(threadIdx.x);
  static_part[i] = in[i];
  __syncthreads();
  dynamic_part[63 - i] = static_part[i];
  __syncthreads();
  out[i] = *dynamic_part.at(i, 1);
}
__global__ void shared_arrays(const float* in, float* out) {
  __shared__ SharedArray<float, 64, 16> array;
  exchange(array, dynamic_shared<float>(), in, out);
}
__global__ void shared_parts(const float* in, float* out) {
  __shared__ SharedArray<SharedArray<float, 72>, 3> rows;
  exchange(SharedSpan<float>(rows[1]).part(4, 64), dynamic_shared<float>(16, 64), in, out);
}

// The block's last thread is one element too far.
__global__ void past_static_shared(const float* in, float* out) {
  __shared__ SharedArray<float, 63> array;
  array[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = array[threadIdx.x];
}
__global__ void before_static_shared(const float* in, float* out) {
  __shared__ SharedArray<float, 64> array;
  array[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = array[int(threadIdx.x) - 1];
}
__global__ void vector_past_static_shared(const float* in, float* out) {
  __shared__ SharedArray<float, 64, 16> array;
  array[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = *array.at(threadIdx.x / 4 * 4 + 1, 4);
}
__global__ void past_dynamic_shared(const float* in, float* out) {
  const auto array = dynamic_shared<float>();
  array[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = array[threadIdx.x + 1];
}
__global__ void part_past_dynamic_shared(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x] + dynamic_shared<float>(4, 64)[0];
}
__global__ void misaligned_dynamic_shared(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x] + float(dynamic_shared<double>(4, 1)[0]);
}
__global__ void array_that_is_not_shared(const float* in, float* out) {
  SharedArray<float, 64> array;
  array[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = array[threadIdx.x];
}
__global__ void reads_dynamic_that_nobody_wrote(const float* in, float* out) {
  const auto shared = dynamic_shared<float>();
  if (threadIdx.x < 63) shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

__global__ void misaligned_vector_load(const float* in, float* out) {
  const auto pack = *reinterpret_cast<const aigc::Pack<float, 8>*>(in + 1);
  out[threadIdx.x] = pack.element[0];
}

// Plain pointers, whose bounds only AddressSanitizer knows; after a barrier, so that other threads have run.
__device__ float sum4(const float* p) { return p[0] + p[1] + p[2] + p[3]; }
__global__ void past_global_memory(const float* in, float* out) {
  __syncthreads();
  out[threadIdx.x] = sum4(in + threadIdx.x + 62);
}
__global__ void past_dynamic_shared_by_pointer(const float* in, float* out) {
  const auto shared = dynamic_shared<float>();
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sum4(shared.data() + (threadIdx.x + 1) / 4 * 4);
}
__global__ void past_static_shared_by_pointer(const float* in, float* out) {
  __shared__ SharedArray<float, 64> shared;
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = sum4(shared.data() + (threadIdx.x + 1) / 4 * 4);
}
__global__ void past_a_local_array(const float* in, float* out) {
  float local[64];
  for (int i = 0; i < 64; ++i) local[i] = in[i];
  __syncthreads();
  out[threadIdx.x] = sum4(local + (threadIdx.x + 1) / 4 * 4);
}

}  // namespace

int main(int argc, char** argv) {
  alignas(16) static float in[128], out[128];
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  const auto run = [&](void (*kernel)(const float*, float*), dim3 grid, int block, size_t shared_bytes) {
    return [=, input = static_cast<const float*>(in), output = static_cast<float*>(out)] {
      launch(kernel, grid, block, shared_bytes, nullptr, input, output);
    };
  };
  const std::map<std::string, std::function<void()>> kernels = {
      {"block_sum", run(block_sum<true>, 2, 64, 0)},
      {"missing_barrier", run(block_sum<false>, 2, 64, 0)},
      {"sum_of_the_blocks_before", run(sum_of_the_blocks_before, dim3(2, 4, 8), 1, 0)},
      {"number_of_the_block", run(number_of_the_block, dim3(2, 4, 8), 1, 0)},
      {"too_high_a_grid", run(number_of_the_block, dim3(1, 65536), 1, 0)},
      {"warp_sum", run(warp_sum, 1, 64, 0)},
      {"halves_of_a_warp", run(halves_of_a_warp, 1, 64, 0)},
      {"odd_and_even_lanes", run(odd_and_even_lanes, 1, 64, 0)},
      {"shuffle_down", run(shuffle_down<8>, 1, 64, 0)},
      {"shuffle_up", run(shuffle_up<8>, 1, 64, 0)},
      {"shuffle_xor", run(shuffle_xor<8>, 1, 64, 0)},
      {"shuffle_from", run(shuffle_from<8>, 1, 64, 0)},
      {"reductions", run(reductions, 1, 40, 0)},
      {"pipeline", run(pipeline<true, true, true>, 1, 64, 0)},
      {"wide_copies", run(wide_copies, 1, 64, 256)},
      {"copy_without_wait", run(pipeline<false, true, true>, 1, 64, 0)},
      {"copy_without_commit", run(pipeline<true, true, false>, 1, 64, 0)},
      {"copy_without_barrier", run(pipeline<true, false, true>, 1, 64, 0)},
      {"misaligned_copy", run(misaligned_copy, 1, 64, 0)},
      {"copy_of_a_wrong_size", run(copy_of_a_wrong_size, 1, 64, 0)},
      {"copy_to_global_memory", run(copy_to_global_memory, 1, 64, 0)},
      {"lane_that_ended", run(lane_that_ended, 1, 64, 0)},
      {"lane_outside_of_the_mask", run(lane_outside_of_the_mask, 1, 64, 0)},
      {"lane_that_does_not_exist", run(lane_that_does_not_exist, 1, 40, 0)},
      {"masks_that_overlap", run(masks_that_overlap, 1, 64, 0)},
      {"other_collectives", run(other_collectives, 1, 64, 0)},
      {"barrier_and_collective", run(barrier_and_collective, 1, 64, 0)},
      {"width_of_twelve", run(shuffle_down<12>, 1, 64, 0)},
      {"shared_arrays", run(shared_arrays, 1, 64, 256)},
      {"shared_parts", run(shared_parts, 1, 64, 272)},
      {"divergent_barrier", run(divergent_barrier, 1, 64, 0)},
      {"shuffle_without_some_lanes", run(shuffle_without_some_lanes, 1, 64, 0)},
      {"mask_without_the_caller", run(mask_without_the_caller, 1, 64, 0)},
      {"reads_what_nobody_wrote", run(reads_what_nobody_wrote<float>, 1, 64, 0)},
      {"reads_dynamic_that_nobody_wrote", run(reads_dynamic_that_nobody_wrote, 1, 64, 256)},
      {"past_static_shared", run(past_static_shared, 1, 64, 0)},
      {"before_static_shared", run(before_static_shared, 1, 64, 0)},
      {"vector_past_static_shared", run(vector_past_static_shared, 1, 64, 0)},
      {"array_that_is_not_shared", run(array_that_is_not_shared, 1, 64, 0)},
      {"past_dynamic_shared", run(past_dynamic_shared, 1, 64, 256)},
      {"part_past_dynamic_shared", run(part_past_dynamic_shared, 1, 64, 256)},
      {"misaligned_dynamic_shared", run(misaligned_dynamic_shared, 1, 64, 256)},
      {"too_much_dynamic_shared", run(shared_arrays, 1, 64, 100 << 10)},
      {"past_global_memory", run(past_global_memory, 1, 64, 0)},
      {"past_dynamic_shared_by_pointer", run(past_dynamic_shared_by_pointer, 1, 64, 256)},
      {"past_static_shared_by_pointer", run(past_static_shared_by_pointer, 1, 64, 0)},
      {"past_a_local_array", run(past_a_local_array, 1, 64, 0)},
      {"misaligned_vector_load", run(misaligned_vector_load, 1, 32, 0)},
  };
  try {
    kernels.at(argc > 1 ? argv[1] : "")();
  } catch (const std::runtime_error& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
  for (int i = 0; i < 64; ++i) std::printf("%.9g\n", out[i]);
}
