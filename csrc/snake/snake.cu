// A block works on one chunk of units at a time, a thread on eight neighbouring elements. As many threads share
// a unit as it has work for. Where units are segments of planes (NCHW), alpha is one number, and the unit's
// threads sum its gradient by shuffles; where they are pixels (NHWC, NC), a thread keeps the alphas of its
// columns in registers, goes down the chunk's pixels and sums its columns.
//
// The kernels have some local memory without spilling: sin and cos of huge numbers have their digits there.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"
#include "snake/snake.h"
#include "snake/snake_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;

// Blocks per multiprocessor that the registers must suffice for. Left to itself, the compiler aims for more
// and spills.
template <class T>
constexpr int kBlocks = sizeof(acc_t<T>) == 4 ? 2 : 1;
constexpr int kColumns = kThreads * 8;  // of a pixel, that a block processes at once

// Eight elements from `at` on. Leaves the terms of the gradient of alpha in `terms` (0 from the n-th on).
template <class T, int kOrder>
__device__ void apply(const SnakeParams& p, int64_t at, int64_t n, const acc_t<T> (&alpha)[8],
                      const acc_t<T> (&w)[8], acc_t<T> (&terms)[8]) {
  using S = acc_t<T>;
  S x[8];
  load<8>(static_cast<const T*>(p.x) + at, n, x);
  if constexpr (kOrder == 0) {
#pragma unroll
    for (int j = 0; j < 8; ++j) x[j] = SnakePoint<S>(x[j], alpha[j]).value();
  } else {
    S dy[8];
    load<8>(static_cast<const T*>(p.dy) + at, n, dy);
    if constexpr (kOrder == 1) {
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const SnakePoint<S> point(x[j], alpha[j]);
        x[j] = dy[j] * point.of_x();
        terms[j] = dy[j] * point.of_alpha();
      }
    } else {
      S v[8];
      load<8>(static_cast<const T*>(p.v) + at, n, v);
#pragma unroll
      for (int j = 0; j < 8; ++j)
        SnakePoint<S>(x[j], alpha[j]).second_gradients(dy[j], v[j], w[j], dy[j], x[j], terms[j]);
      store<8>(static_cast<T*>(p.grad_dy) + at, n, dy);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j)  // with an infinite alpha, they are NaN where there is no element
      if (j >= n) terms[j] = 0;
  }
  store<8>(static_cast<T*>(p.y) + at, n, x);
}

template <class S>
__device__ S sum_of(const S (&x)[8]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// `width` threads (a power of two) share a segment of a plane.
template <class T, int kOrder>
__device__ void planes(const SnakeParams& p, Range units, int width) {
  using S = acc_t<T>;
  const auto *alpha = static_cast<const T*>(p.alpha), *w = static_cast<const T*>(p.w);
  const int at_once = kThreads / width, lane = int(threadIdx.x) % width;
  for (int64_t base = units.begin; base < units.end; base += at_once) {
    const int64_t unit = base + int(threadIdx.x) / width;
    const SnakeSegment segment = snake_segment(p, unit);
    double sum = 0;
    if (unit < units.end) {
      S alphas[8], ws[8] = {};
      for (int j = 0; j < 8; ++j) {
        alphas[j] = to_acc(alpha[segment.channel]);
        if (kOrder == 2 && w) ws[j] = to_acc(w[segment.channel]);
      }
      for (int64_t i = lane * 8; i < segment.length; i += width * 8) {
        S terms[8];
        apply<T, kOrder>(p, segment.begin + i, segment.length - i, alphas, ws, terms);
        if constexpr (kOrder > 0) sum += sum_of(terms);
      }
    }
    if (kOrder > 0 && p.partials) {
      sum = group_sum<kThreads>(sum, width);
      if (lane == 0 && unit < units.end) p.partials[segment.partial] = sum;
    }
  }
}

// `width` threads (a power of two) share a pixel.
template <class T, int kOrder>
__device__ void pixels(const SnakeParams& p, int64_t chunk, Range units, int width) {
  using S = acc_t<T>;
  const auto *alpha = static_cast<const T*>(p.alpha), *w = static_cast<const T*>(p.w);
  const int at_once = kThreads / width, lane = int(threadIdx.x) % width;
  for (int64_t left = 0; left < p.channels; left += kColumns) {
    const int64_t i = left + lane * 8, n = p.channels - i;
    S alphas[8] = {}, ws[8] = {};
    if (n > 0) {
      load<8>(alpha + i, n, alphas);
      if (kOrder == 2 && w) load<8>(w + i, n, ws);
    }
    ThreadSums<S, 1, 8> columns;
    for (int64_t unit = units.begin + int(threadIdx.x) / width; n > 0 && unit < units.end; unit += at_once) {
      S terms[8];
      apply<T, kOrder>(p, unit * p.channels + i, n, alphas, ws, terms);
      if constexpr (kOrder > 0) {
#pragma unroll
        for (int j = 0; j < 8; ++j) columns.block[0][j] += terms[j];
        columns.end_term();
      }
    }
    if (kOrder > 0 && p.partials) {
      columns.end_block();
      double* row = p.partials + chunk * p.channels + left;
      const int here = int(min(p.channels - left, kColumns));
      column_sums<kThreads>(columns.total[0], width, here, here, [&](int c, double sum) { row[c] = sum; });
    }
  }
}

template <class T, int kOrder>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    snake_kernel(const SnakeParams p, int64_t chunks, int width) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const Range units = part_of(unit_count(p), p.units_per_chunk, chunk);
    if (alpha_runs_along(p))
      pixels<T, kOrder>(p, chunk, units, width);
    else
      planes<T, kOrder>(p, units, width);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const SnakeParams p, int64_t channels, int64_t rows, int width) {
  const auto* partials = p.partials;
  auto* dalpha = static_cast<T*>(p.dalpha);
  sum_rows<kThreads>(
      channels, width, rows, [&](int64_t row, int64_t channel) { return partials[row * channels + channel]; },
      [&](int64_t channel, double sum) { store_scalar(dalpha + channel, acc_t<T>(sum)); });
}

template <int kOrder>
void run(const SnakeParams& p, int64_t chunks, void* stream) {
  const int width = power_of_two(ceil_div(unit_length(p), 8), kThreads);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(snake_kernel<T, kOrder>, grid_size(chunks), kThreads, 0, stream, p, chunks, width);
  });
}

}  // namespace

namespace cuda {

void snake_forward(const SnakeParams& p, int64_t chunks, void* stream) { run<0>(p, chunks, stream); }
void snake_backward(const SnakeParams& p, int64_t chunks, void* stream) { run<1>(p, chunks, stream); }
void snake_double_backward(const SnakeParams& p, int64_t chunks, void* stream) { run<2>(p, chunks, stream); }

void snake_reduce(const SnakeParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch_sum_rows<kThreads>(reduce_kernel<T>, channels, stream, p, channels, partial_rows(p));
  });
}

}  // namespace cuda
}  // namespace aigc
