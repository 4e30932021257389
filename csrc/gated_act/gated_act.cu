// A block works on one chunk of units at a time, a thread on eight neighbouring elements of both halves. As
// many threads share a unit as it has work for. Where units are planes (NCHW), the bias is one number for
// each half, and the unit's threads sum the gradients by shuffles; where they are pixels (NHWC, NC), a thread
// keeps the biases of its columns in registers, goes down the chunk's pixels and sums its columns.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"
#include "gated_act/gated_act.h"
#include "gated_act/gated_act_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = kThreads * 8;  // of a pixel, that a block processes at once

// Eight elements of y; or of dx, whose two halves are left in d1 and d2 (0 from the n-th element on).
template <class T, bool kBackward>
__device__ void apply(const GatedActParams& p, int64_t y, int64_t x1, int64_t x2, int64_t n,
                      const acc_t<T> (&b1)[8], const acc_t<T> (&b2)[8], acc_t<T> (&d1)[8],
                      acc_t<T> (&d2)[8]) {
  using S = acc_t<T>;
  const auto* x = static_cast<const T*>(p.x);
  load<8>(x + x1, n, d1);
  load<8>(x + x2, n, d2);
  if constexpr (kBackward) {
    S dy[8];
    load<8>(static_cast<const T*>(p.dy) + y, n, dy);
#pragma unroll
    for (int j = 0; j < 8; ++j) Gates<S>(d1[j] + b1[j], d2[j] + b2[j]).gradients(dy[j], d1[j], d2[j]);
    store<8>(static_cast<T*>(p.dx) + x1, n, d1);
    store<8>(static_cast<T*>(p.dx) + x2, n, d2);
#pragma unroll
    for (int j = 0; j < 8; ++j)  // with a NaN in the bias, they are NaN where there is no element
      if (j >= n) d1[j] = d2[j] = 0;
  } else {
#pragma unroll
    for (int j = 0; j < 8; ++j) d1[j] = Gates<S>(d1[j] + b1[j], d2[j] + b2[j]).value();
    store<8>(static_cast<T*>(p.y) + y, n, d1);
  }
}

template <class S>
__device__ S sum_of(const S (&x)[8]) {
  return ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
}

// `width` threads (a power of two) share a plane.
template <class T, bool kBackward>
__device__ void planes(const GatedActParams& p, Range units, int width) {
  using S = acc_t<T>;
  const auto* b = static_cast<const T*>(p.b);
  const int at_once = kThreads / width, lane = int(threadIdx.x) % width;
  for (int64_t base = units.begin; base < units.end; base += at_once) {
    const int64_t unit = base + int(threadIdx.x) / width;
    const int64_t sample = unit / p.channels, channel = unit - sample * p.channels;
    const int64_t y = unit * p.inner, x1 = (unit + sample * p.channels) * p.inner,
                  x2 = x1 + p.channels * p.inner;
    double sum1 = 0, sum2 = 0;
    if (unit < units.end) {
      S b1[8], b2[8];
      for (int j = 0; j < 8; ++j) {
        b1[j] = b ? to_acc(b[channel]) : S(0);
        b2[j] = b ? to_acc(b[p.channels + channel]) : S(0);
      }
      for (int64_t i = lane * 8; i < p.inner; i += width * 8) {
        S d1[8], d2[8];
        apply<T, kBackward>(p, y + i, x1 + i, x2 + i, p.inner - i, b1, b2, d1, d2);
        if (kBackward) sum1 += sum_of(d1), sum2 += sum_of(d2);
      }
    }
    if (kBackward && p.partials) {
      sum1 = group_sum<kThreads>(sum1, width);
      sum2 = group_sum<kThreads>(sum2, width);
      if (lane == 0 && unit < units.end) {
        double* row = p.partials + sample * 2 * p.channels;
        row[channel] = sum1;
        row[p.channels + channel] = sum2;
      }
    }
  }
}

// `width` threads (a power of two) share a pixel.
template <class T, bool kBackward>
__device__ void pixels(const GatedActParams& p, int64_t chunk, Range units, int width) {
  using S = acc_t<T>;
  const auto* b = static_cast<const T*>(p.b);
  const int at_once = kThreads / width, lane = int(threadIdx.x) % width;
  for (int64_t left = 0; left < p.channels; left += kColumns) {
    const int64_t i = left + lane * 8, n = p.channels - i;
    S b1[8] = {}, b2[8] = {};
    if (b && n > 0) {
      load<8>(b + i, n, b1);
      load<8>(b + p.channels + i, n, b2);
    }
    ThreadSums<S, 2, 8> columns;
    for (int64_t unit = units.begin + int(threadIdx.x) / width; n > 0 && unit < units.end; unit += at_once) {
      const int64_t y = unit * p.channels + i, x1 = 2 * unit * p.channels + i, x2 = x1 + p.channels;
      S d1[8], d2[8];
      apply<T, kBackward>(p, y, x1, x2, n, b1, b2, d1, d2);
      if constexpr (kBackward) {
#pragma unroll
        for (int j = 0; j < 8; ++j) columns.block[0][j] += d1[j], columns.block[1][j] += d2[j];
        columns.end_term();
      }
    }
    if (kBackward && p.partials) {
      columns.end_block();
      double* row = p.partials + chunk * 2 * p.channels + left;
      const int here = int(min(p.channels - left, kColumns));
      column_sums<kThreads>(columns.total[0], width, here, here, [&](int c, double sum) { row[c] = sum; });
      column_sums<kThreads>(columns.total[1], width, here, here,
                            [&](int c, double sum) { row[p.channels + c] = sum; });
    }
  }
}

template <class T, bool kBackward>
__global__ void __launch_bounds__(kThreads)
    gated_act_kernel(const GatedActParams p, int64_t chunks, int width) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const Range units = part_of(unit_count(p), p.units_per_chunk, chunk);
    if (bias_runs_along(p))
      pixels<T, kBackward>(p, chunk, units, width);
    else
      planes<T, kBackward>(p, units, width);
  }
}

// A block sums `width` neighbouring channels, a thread every (kThreads / width)-th row of one.
template <class T>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const GatedActParams p, int64_t channels, int64_t rows, int width) {
  const auto* partials = p.partials;
  auto* db = static_cast<T*>(p.db);
  sum_rows<kThreads>(
      channels, width, rows, [&](int64_t row, int64_t channel) { return partials[row * channels + channel]; },
      [&](int64_t channel, double sum) { store_scalar(db + channel, acc_t<T>(sum)); });
}

template <bool kBackward>
void run(const GatedActParams& p, int64_t chunks, void* stream) {
  const int width = power_of_two(ceil_div(unit_length(p), 8), kThreads);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(gated_act_kernel<T, kBackward>, grid_size(chunks), kThreads, 0, stream, p, chunks, width);
  });
}

}  // namespace

namespace cuda {

void gated_act_forward(const GatedActParams& p, int64_t chunks, void* stream) {
  run<false>(p, chunks, stream);
}
void gated_act_backward(const GatedActParams& p, int64_t chunks, void* stream) {
  run<true>(p, chunks, stream);
}

void gated_act_reduce(const GatedActParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch_sum_rows<kThreads>(reduce_kernel<T>, channels, stream, p, channels, partial_rows(p));
  });
}

}  // namespace cuda
}  // namespace aigc
