// Where the channels of a pixel are adjacent (NHWC, NC), up to a warp of threads shares the pixel, eight
// channels to a thread. Where pixels are adjacent (NCHW), a block takes a tile of kPixelTile of them: a
// thread takes four neighbouring pixels, a warp every eighth channel. The inputs are read twice, for the sums
// and for the result, the second time from cache: a tile of 128 channels in float32 has 64 KB. The traffic
// from and to memory is then 2e, 3e and 4e.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"
#include "pixel_norm/pixel_norm_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPixels = kPixelTile / 32;  // of a thread, in a tile

// N neighbouring elements of every input.
template <class T, int kOrder, int N>
__device__ void load_inputs(const PixelNormParams& p, int64_t at, int64_t n,
                            acc_t<T> (&input)[kOrder + 1][N]) {
  load<N>(static_cast<const T*>(p.x) + at, n, input[0]);
  if constexpr (kOrder >= 1) load<N>(static_cast<const T*>(p.dy) + at, n, input[1]);
  if constexpr (kOrder == 2) load<N>(static_cast<const T*>(p.u) + at, n, input[2]);
}

// Element j of every input.
template <class S, int kInputs, int N>
__device__ void element_of(const S (&input)[kInputs][N], int j, S (&one)[kInputs]) {
#pragma unroll
  for (int k = 0; k < kInputs; ++k) one[k] = input[k][j];
}

// `width` threads (a power of two, up to a warp) share a pixel.
template <class T, int kOrder>
__global__ void __launch_bounds__(kThreads, sizeof(acc_t<T>) == 4 ? 4 : 2)
    row_kernel(const PixelNormParams p, int64_t pixels, int width) {
  using F = PixelNormFormula<kOrder>;
  using S = acc_t<T>;
  const int at_once = kThreads / width, lane = int(threadIdx.x) % width;
  for (int64_t base = int64_t(blockIdx.x) * at_once; base < pixels; base += int64_t(gridDim.x) * at_once) {
    const int64_t pixel = base + int(threadIdx.x) / width;
    const int64_t first = pixel * p.channels, channels = pixel < pixels ? p.channels : 0;
    double total[F::kSums] = {};
    S input[F::kInputs][8] = {};
    for (int64_t i = lane * 8; i < channels; i += width * 8) {
      load_inputs<T, kOrder>(p, first + i, channels - i, input);
      S sum[F::kSums] = {};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        S one[F::kInputs];
        element_of(input, j, one);
        F::products(one, [&](int s, S a, S b) { sum[s] += a * b; });
      }
      for (int s = 0; s < F::kSums; ++s) total[s] += sum[s];
    }
    for (int s = 0; s < F::kSums; ++s) total[s] = group_sum<kThreads>(total[s], width);
    S factor[F::kInputs];
    F::factors(p, total, factor);
    for (int64_t i = lane * 8; i < channels; i += width * 8) {
      if (p.channels > width * 8)
        load_inputs<T, kOrder>(p, first + i, channels - i, input);  // else still here
      S result[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        S one[F::kInputs];
        element_of(input, j, one);
        result[j] = F::result(factor, one);
      }
      store<8>(static_cast<T*>(p.y) + first + i, channels - i, result);
    }
  }
}

template <class T, int kOrder>
__global__ void __launch_bounds__(kThreads)
    tile_kernel(const PixelNormParams p, int64_t items, int64_t tiles) {
  using F = PixelNormFormula<kOrder>;
  using S = acc_t<T>;
  __shared__ SharedArray<SharedArray<SharedArray<double, kPixelTile>, kWarps>, F::kSums> sums;
  __shared__ SharedArray<SharedArray<S, kPixelTile>, F::kInputs> factors;
  const int warp = int(threadIdx.x) / 32, column = int(threadIdx.x) % 32 * kPixels;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t outer = item / tiles, left = (item - outer * tiles) * kPixelTile;
    const int64_t first = outer * p.channels * p.inner + left + column;
    const int64_t n = p.inner - left - column;  // pixels from this thread's first to the end
    ThreadSums<S, F::kSums, kPixels> columns;
    for (int64_t channel = warp; n > 0 && channel < p.channels; channel += kWarps) {
      S input[F::kInputs][kPixels];
      load_inputs<T, kOrder>(p, first + channel * p.inner, n, input);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        S one[F::kInputs];
        element_of(input, j, one);
        F::products(one, [&](int s, S a, S b) { columns.block[s][j] += a * b; });
      }
      columns.end_term();
    }
    columns.end_block();
    for (int s = 0; s < F::kSums; ++s)
      for (int j = 0; j < kPixels; ++j) sums[s][warp][column + j] = columns.total[s][j];
    __syncthreads();
    if (threadIdx.x < kPixelTile) {
      double all[F::kSums] = {};
      S factor[F::kInputs];
      for (int s = 0; s < F::kSums; ++s)
        for (int w = 0; w < kWarps; ++w) all[s] += sums[s][w][threadIdx.x];
      F::factors(p, all, factor);
      for (int k = 0; k < F::kInputs; ++k) factors[k][threadIdx.x] = factor[k];
    }
    __syncthreads();
    for (int64_t channel = warp; n > 0 && channel < p.channels; channel += kWarps) {
      S input[F::kInputs][kPixels], result[kPixels];
      load_inputs<T, kOrder>(p, first + channel * p.inner, n, input);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) {
        S one[F::kInputs], factor[F::kInputs];
        element_of(input, j, one);
        for (int k = 0; k < F::kInputs; ++k) factor[k] = factors[k][column + j];
        result[j] = F::result(factor, one);
      }
      store<kPixels>(static_cast<T*>(p.y) + first + channel * p.inner, n, result);
    }
    __syncthreads();  // before the next tile's sums
  }
}

template <int kOrder>
void run(const PixelNormParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    if (p.inner == 1) {
      const int width = power_of_two(ceil_div(p.channels, 8), 32);
      const int at_once = kThreads / width;
      launch(row_kernel<T, kOrder>, grid_size(ceil_div(items, at_once)), kThreads, 0, stream, p, items,
             width);
    } else {
      launch(tile_kernel<T, kOrder>, grid_size(items), kThreads, 0, stream, p, items, items / p.outer);
    }
  });
}

}  // namespace

namespace cuda {

void pixel_norm_forward(const PixelNormParams& p, int64_t items, void* stream) { run<0>(p, items, stream); }
void pixel_norm_backward(const PixelNormParams& p, int64_t items, void* stream) { run<1>(p, items, stream); }
void pixel_norm_double_backward(const PixelNormParams& p, int64_t items, void* stream) {
  run<2>(p, items, stream);
}

}  // namespace cuda
}  // namespace aigc
