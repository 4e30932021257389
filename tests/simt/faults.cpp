// Kernels with one planted fault each, and right ones beside them, for tests/simt/test_simt.py.
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/cuda_launch.h"
#include "core/cuda_vec.h"

namespace {

using aigc::launch;

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

__global__ void misaligned_vector_load(const float* in, float* out) {
  const auto pack = *reinterpret_cast<const aigc::Pack8<float>*>(in + 1);
  out[threadIdx.x] = pack.element[0];
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  alignas(16) float in[128], out[128] = {};
  for (int i = 0; i < 128; ++i) in[i] = float(i);
  const float* input = in;
  float* output = out;
  try {
    if (name == "block_sum")
      launch(block_sum<true>, 2, 64, 0, nullptr, input, output);
    else if (name == "missing_barrier")
      launch(block_sum<false>, 2, 64, 0, nullptr, input, output);
    else if (name == "warp_sum")
      launch(warp_sum, 1, 64, 0, nullptr, input, output);
    else if (name == "divergent_barrier")
      launch(divergent_barrier, 1, 64, 0, nullptr, input, output);
    else if (name == "shuffle_without_some_lanes")
      launch(shuffle_without_some_lanes, 1, 64, 0, nullptr, input, output);
    else if (name == "mask_without_the_caller")
      launch(mask_without_the_caller, 1, 64, 0, nullptr, input, output);
    else if (name == "reads_what_nobody_wrote")
      launch(reads_what_nobody_wrote, 1, 64, 0, nullptr, input, output);
    else if (name == "misaligned_vector_load")
      launch(misaligned_vector_load, 1, 32, 0, nullptr, input, output);
    else
      return 2;
  } catch (const std::exception& error) {
    std::printf("error %s\n", error.what());
    return 1;
  }
  for (int i = 0; i < 64; ++i) std::printf("%g\n", out[i]);
}
