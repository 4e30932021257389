// Sums over the threads of a block, in an order that depends only on the shape of the work.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/cuda_launch.h"
#include "core/cuda_shared.h"
#include "core/numeric.h"

namespace aigc {

// kSums x N sums of one thread. They run in S over kSumBlock terms each and are then added up in float64.
template <class S, int kSums, int N>
struct ThreadSums {
  S block[kSums][N] = {};
  double total[kSums][N] = {};
  int terms = 0;

  // After every term that was added to all of `block`.
  __device__ void end_term() {
    if (++terms == kSumBlock) end_block();
  }
  __device__ void end_block() {
    terms = 0;
#pragma unroll
    for (int s = 0; s < kSums; ++s)
#pragma unroll
      for (int j = 0; j < N; ++j) total[s][j] += block[s][j], block[s][j] = 0;
  }
};

// The sum over each group of `width` neighbouring threads (a power of two), in all of them. Every thread of
// the block must call it.
template <int kThreads>
static __device__ double group_sum(double value, int width) {
  for (int step = 1; step < width && step < 32; step *= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  if (width <= 32) return value;
  __shared__ SharedArray<double, kThreads / 32> warps;
  const int warp = int(threadIdx.x) / 32, warps_of_group = width / 32;
  if (threadIdx.x % 32 == 0) warps[warp] = value;
  __syncthreads();
  const int first = warp / warps_of_group * warps_of_group;
  value = 0;
  for (int i = 0; i < warps_of_group; ++i) value += warps[first + i];
  __syncthreads();  // before the next call writes
  return value;
}

template <int kThreads>
static __device__ double block_sum(double value) {
  return group_sum<kThreads>(value, kThreads);
}

// `width` neighbouring threads (a power of two) walk a row of up to 8 * width columns, eight columns each;
// kThreads / width rows at once. Calls result(c, sum) once for each c in [0, period), with the sum of `own`
// over all rows and all columns that are c modulo `period`. `length` is the row length, a multiple of the
// period. Every thread of the block must call it.
template <int kThreads, class F>
static __device__ void column_sums(const double (&own)[8], int width, int length, int period, F&& result) {
  constexpr int kMostParts = 32;
  __shared__ SharedArray<double, kThreads * 8> columns;
  __shared__ SharedArray<double, kThreads> parts;
  const int thread = int(threadIdx.x);
  for (int j = 0; j < 8; ++j) columns[thread * 8 + j] = own[j];
  __syncthreads();
  const int row_count = kThreads / width, periods = length / period, terms = row_count * periods;
  const auto partial = [&](int c, int part, int part_count) {
    double sum = 0;
    for (int term = part; term < terms; term += part_count)
      sum += columns[term / periods * width * 8 + term % periods * period + c];
    return sum;
  };
  int part_count = kThreads / period < kMostParts ? kThreads / period : kMostParts;
  if (part_count <= 1) {
    for (int c = thread; c < period; c += kThreads) result(c, partial(c, 0, 1));
  } else {
    if (thread < part_count * period) parts[thread] = partial(thread % period, thread / period, part_count);
    __syncthreads();
    if (thread < period) {
      double sum = 0;
      for (int part = 0; part < part_count; ++part) sum += parts[part * period + thread];
      result(thread, sum);
    }
  }
  __syncthreads();  // before the next call writes
}

// Calls result(column, sum of term(row, column) over all rows) for every column. A block sums `width` (a
// power of two) neighbouring columns at a time, a thread every (kThreads / width)-th row of one. Every thread
// of the grid must call it.
template <int kThreads, class Term, class F>
static __device__ void sum_rows(int64_t columns, int width, int64_t rows, Term&& term, F&& result) {
  __shared__ SharedArray<double, kThreads> shared;
  const int lane = int(threadIdx.x) % width, group = int(threadIdx.x) / width, groups = kThreads / width;
  for (int64_t left = int64_t(blockIdx.x) * width; left < columns; left += int64_t(gridDim.x) * width) {
    const int64_t column = left + lane;
    double sum = 0;
    for (int64_t row = group; column < columns && row < rows; row += groups) sum += term(row, column);
    shared[threadIdx.x] = sum;
    __syncthreads();
    if (group == 0 && column < columns) {
      for (int other = 1; other < groups; ++other) sum += shared[other * width + lane];
      result(column, sum);
    }
    __syncthreads();  // before the next columns
  }
}

// Launches a kernel whose blocks call sum_rows for `columns` columns. Its last parameter is the width.
template <int kThreads, class... Params, class... Args>
void launch_sum_rows(void (*kernel)(Params...), int64_t columns, void* stream, const Args&... args) {
  const int width = power_of_two(columns, 32);
  launch(kernel, grid_size(ceil_div(columns, width)), kThreads, 0, stream, args..., width);
}

}  // namespace aigc
