// Kernels with one planted fault each, and right ones beside them, for tests/simt/test_simt.py.
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
  __shared__ float shared[64];
  shared[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  for (int step = 32; step > 0; step /= 2) {
    if (int(threadIdx.x) < step) shared[threadIdx.x] += shared[threadIdx.x + step];
    if (kBarrier) __syncthreads();
  }
  if (threadIdx.x == 0) out[blockIdx.x] = shared[0];
}

__global__ void warp_sum(const float* in, float* out) {
  float x = in[threadIdx.x];
  for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(0xffffffffu, x, step);
  if (threadIdx.x % 32 == 0) out[threadIdx.x / 32] = x;
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

// Off by one: the last element is never written to shared memory.
__global__ void reads_what_nobody_wrote(const float* in, float* out) {
  __shared__ float shared[64];
  if (threadIdx.x < 63) shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[63 - threadIdx.x];
}

// Reverses 64 inputs, through both kinds of shared memory: 256 bytes of each.
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

// The block's last thread is one too far.
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

}  // namespace

int main(int argc, char** argv) {
  alignas(16) float in[128], out[128] = {};
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  const auto run = [&](void (*kernel)(const float*, float*), int grid, int block, size_t shared_bytes) {
    return [=, input = static_cast<const float*>(in), output = static_cast<float*>(out)] {
      launch(kernel, grid, block, shared_bytes, nullptr, input, output);
    };
  };
  const std::map<std::string, std::function<void()>> kernels = {
      {"block_sum", run(block_sum<true>, 2, 64, 0)},
      {"missing_barrier", run(block_sum<false>, 2, 64, 0)},
      {"warp_sum", run(warp_sum, 1, 64, 0)},
      {"shared_arrays", run(shared_arrays, 1, 64, 256)},
      {"shared_parts", run(shared_parts, 1, 64, 272)},
      {"divergent_barrier", run(divergent_barrier, 1, 64, 0)},
      {"shuffle_without_some_lanes", run(shuffle_without_some_lanes, 1, 64, 0)},
      {"mask_without_the_caller", run(mask_without_the_caller, 1, 64, 0)},
      {"reads_what_nobody_wrote", run(reads_what_nobody_wrote, 1, 64, 0)},
      {"reads_dynamic_that_nobody_wrote", run(reads_dynamic_that_nobody_wrote, 1, 64, 256)},
      {"past_static_shared", run(past_static_shared, 1, 64, 0)},
      {"before_static_shared", run(before_static_shared, 1, 64, 0)},
      {"vector_past_static_shared", run(vector_past_static_shared, 1, 64, 0)},
      {"past_dynamic_shared", run(past_dynamic_shared, 1, 64, 256)},
      {"part_past_dynamic_shared", run(part_past_dynamic_shared, 1, 64, 256)},
      {"misaligned_dynamic_shared", run(misaligned_dynamic_shared, 1, 64, 256)},
      {"too_much_dynamic_shared", run(shared_arrays, 1, 64, 100 << 10)},
      {"misaligned_vector_load", run(misaligned_vector_load, 1, 32, 0)},
  };
  try {
    kernels.at(argc > 1 ? argv[1] : "")();
  } catch (const std::runtime_error& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
  for (int i = 0; i < 64; ++i) std::printf("%g\n", out[i]);
}
