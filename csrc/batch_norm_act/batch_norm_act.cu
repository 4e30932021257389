// A block sums a part of one channel (NCHW), or of all channels where they are adjacent (NHWC, NC) and a
// thread takes eight of them. The second pass over a part, for the squares, finds it in the cache. The passes
// over the elements keep a channel's factors in registers while they go along a row of the channel, or down
// the rows of the part.
#include "batch_norm_act/batch_norm_formula.h"
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kColumns = kThreads * 8;

// Blocks per multiprocessor that the registers must suffice for.
template <class T>
constexpr int kBlocks = sizeof(acc_t<T>) == 4 ? 2 : 1;

__device__ double number(const void* values, DType dtype, int64_t at) {
  double result = 0;
  dispatch_dtype(dtype, [&]<class T>(T*) { result = load_scalar(static_cast<const T*>(values) + at); });
  return result;
}

__device__ void put_number(void* values, DType dtype, int64_t at, double value) {
  dispatch_dtype(dtype, [&]<class T>(T*) { store_scalar(static_cast<T*>(values) + at, acc_t<T>(value)); });
}

__device__ double weight_of(const BatchNormParams& p, int64_t channel) {
  return p.weight ? number(p.weight, p.weight_dtype, channel) : 1;
}

// A channel's factors, or those of eight neighbouring channels.
template <class S, int N>
struct Factors {
  S value[kFactors][N];

  __device__ Factors(const BatchNormParams& p, int64_t channel, int count) {
#pragma unroll
    for (int f = 0; f < count; ++f)
#pragma unroll
      for (int j = 0; j < N; ++j)
        value[f][j] =
            channel + j < p.channels ? static_cast<const S*>(p.factors)[f * p.channels + channel + j] : S(0);
  }
  __device__ S get(int f, int j) const { return value[f][N == 1 ? 0 : j]; }
};

template <class T, Act A, int N>
__device__ void gradient(const BatchNormParams& p, const Factors<acc_t<T>, N>& factors, int64_t at, int64_t n,
                         acc_t<T> (&centred)[8], acc_t<T> (&dz)[8]) {
  using S = acc_t<T>;
  const ClampedActivation<A, S> act(p);
  load<8>(static_cast<const T*>(p.x) + at, n, centred);
  load<8>(static_cast<const T*>(p.dy) + at, n, dz);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    centred[j] -= factors.get(kMean, j);
    const S z = centred[j] * factors.get(kScale, j) + factors.get(kBias, j);
    dz[j] = act.gradient(z, dz[j]);
  }
}

template <class T, Act A, bool kBackward, int N>
__device__ void elements(const BatchNormParams& p, const Factors<acc_t<T>, N>& factors, int64_t at,
                         int64_t n) {
  using S = acc_t<T>;
  S v[8], centred[8];
  if constexpr (kBackward) {
    gradient<T, A>(p, factors, at, n, centred, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      v[j] *= factors.get(kScale, j);
      if (p.of_batch) v[j] = v[j] - factors.get(kConstant, j) - centred[j] * factors.get(kSlope, j);
    }
  } else {
    const ClampedActivation<A, S> act(p);
    load<8>(static_cast<const T*>(p.x) + at, n, v);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      v[j] = act.value((v[j] - factors.get(kMean, j)) * factors.get(kScale, j) + factors.get(kBias, j));
  }
  store<8>(static_cast<T*>(p.y) + at, n, v);
}

// ---- sums over a part -----------------------------------------------------------------------------------

// f(first element, elements left in the run) for each group of eight that the thread has in the channel's
// part. `width` threads share a run.
template <class F>
__device__ void for_part(const BatchNormParams& p, const BatchNormPart& part, int64_t channel, int width,
                         F&& f) {
  const int lane = int(threadIdx.x) % width, group = int(threadIdx.x) / width, groups = kThreads / width;
  for (int64_t o = part.outer.begin + group; o < part.outer.end; o += groups) {
    const int64_t row = (o * p.channels + channel) * p.inner;
    for (int64_t i = part.inner.begin + lane * 8; i < part.inner.end; i += width * 8)
      f(row + i, part.inner.end - i);
  }
}

// f(first element) for a thread's rows of the part.
template <class F>
__device__ void for_rows(const BatchNormParams& p, const BatchNormPart& part, int64_t channel, int width,
                         F&& f) {
  if (channel >= p.channels) return;
  const int group = int(threadIdx.x) / width, groups = kThreads / width;
  for (int64_t o = part.outer.begin + group; o < part.outer.end; o += groups) f(o * p.channels + channel);
}

// Where column_sums puts its results.
struct Partials {
  double* out;
  double count;  // what to divide by
  __device__ void operator()(int c, double sum) const { out[c] = sum / count; }
};

template <class S>
__device__ void sum_columns(const S (&own)[8], int width, int columns, const Partials& partials) {
  double wide[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) wide[j] = own[j];
  column_sums<kThreads>(wide, width, columns, columns, partials);
}

template <class T>
__device__ void statistics_of_columns(const BatchNormParams& p, int64_t item, int width) {
  using S = acc_t<T>;
  const BatchNormPart part = part_at(p, item);
  double* partials = p.partials + item * 2 * p.channels;
  for (int64_t left = 0; left < p.channels; left += kColumns) {
    const int64_t channel = left + int64_t(threadIdx.x) % width * 8, n = p.channels - channel;
    const int columns = int(min(p.channels - left, kColumns));
    S sums[8] = {};  // acc_t will do: a thread has few rows of a part
    for_rows(p, part, channel, width, [&](int64_t at) {
      S v[8];
      load<8>(static_cast<const T*>(p.x) + at, n, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] += v[j];
    });
    const Partials means{partials + left, double(part.outer.size())};
    sum_columns(sums, width, columns, means);
    S mean[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) mean[j] = j < n ? S(partials[channel + j]) : S(0);
    S squares[8] = {};
    for_rows(p, part, channel, width, [&](int64_t at) {
      S v[8];
      load<8>(static_cast<const T*>(p.x) + at, n, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares[j] += (v[j] - mean[j]) * (v[j] - mean[j]);
    });
    sum_columns(squares, width, columns, Partials{partials + p.channels + left, 1});
  }
}

template <class T>
__device__ void statistics_of_runs(const BatchNormParams& p, int64_t item, int width) {
  using S = acc_t<T>;
  const int64_t index = item / p.channels, channel = item - index * p.channels;
  const BatchNormPart part = part_at(p, index);
  double* partials = p.partials + index * 2 * p.channels + channel;
  double sum = 0;
  for_part(p, part, channel, width, [&](int64_t at, int64_t n) {
    S v[8], eight = 0;
    load<8>(static_cast<const T*>(p.x) + at, n, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) eight += v[j];
    sum += eight;
  });
  const int64_t count = part.size();
  const double mean = block_sum<kThreads>(sum) / double(count);
  double squares = 0;
  for_part(p, part, channel, width, [&](int64_t at, int64_t n) {
    S v[8], eight = 0;
    load<8>(static_cast<const T*>(p.x) + at, n, v);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (j < n) eight += (v[j] - S(mean)) * (v[j] - S(mean));
    squares += eight;
  });
  squares = block_sum<kThreads>(squares);
  if (threadIdx.x == 0) {
    partials[0] = mean;
    partials[p.channels] = squares;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    statistics_kernel(const BatchNormParams p, int64_t items, int width) {
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x)
    channels_inside(p) ? statistics_of_columns<T>(p, item, width) : statistics_of_runs<T>(p, item, width);
}

template <class T, Act A>
__device__ void gradient_sums_of_columns(const BatchNormParams& p, int64_t item, int width) {
  using S = acc_t<T>;
  const BatchNormPart part = part_at(p, item);
  double* partials = p.partials + item * 2 * p.channels;
  for (int64_t left = 0; left < p.channels; left += kColumns) {
    const int64_t channel = left + int64_t(threadIdx.x) % width * 8, n = p.channels - channel;
    const int columns = int(min(p.channels - left, kColumns));
    const Factors<S, 8> factors(p, channel, kConstant);
    S sums[8] = {}, products[8] = {};  // acc_t will do: a thread has few rows of a part
    for_rows(p, part, channel, width, [&](int64_t at) {
      S centred[8], dz[8];
      gradient<T, A>(p, factors, at, n, centred, dz);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        sums[j] += dz[j];
        products[j] += dz[j] * centred[j];
      }
    });
    sum_columns(sums, width, columns, Partials{partials + left, 1});
    sum_columns(products, width, columns, Partials{partials + p.channels + left, 1});
  }
}

template <class T, Act A>
__device__ void gradient_sums_of_runs(const BatchNormParams& p, int64_t item, int width) {
  using S = acc_t<T>;
  const int64_t index = item / p.channels, channel = item - index * p.channels;
  double* partials = p.partials + index * 2 * p.channels + channel;
  const Factors<S, 1> factors(p, channel, kConstant);
  double sum = 0, product = 0;
  for_part(p, part_at(p, index), channel, width, [&](int64_t at, int64_t n) {
    S centred[8], dz[8], eight = 0, eight_products = 0;
    gradient<T, A>(p, factors, at, n, centred, dz);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (j < n) {
        eight += dz[j];
        eight_products += dz[j] * centred[j];
      }
    sum += eight;
    product += eight_products;
  });
  sum = block_sum<kThreads>(sum);
  product = block_sum<kThreads>(product);
  if (threadIdx.x == 0) {
    partials[0] = sum;
    partials[p.channels] = product;
  }
}

template <class T, Act A>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    gradient_sums_kernel(const BatchNormParams p, int64_t items, int width) {
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x)
    channels_inside(p) ? gradient_sums_of_columns<T, A>(p, item, width)
                       : gradient_sums_of_runs<T, A>(p, item, width);
}

// ---- channels -------------------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    join_statistics_kernel(const BatchNormParams p, int64_t parts, int width) {
  if (p.batch_mean) {
    const double count = double(p.outer * p.inner);
    sum_rows<kThreads>(
        p.channels, width, parts, [&](int64_t i, int64_t channel) { return mean_term(p, i, channel); },
        [&](int64_t channel, double sum) { p.batch_mean[channel] = sum / count; });
    // A thread has the same channels as above, so it reads the means that it has written.
    sum_rows<kThreads>(
        p.channels, width, parts,
        [&](int64_t i, int64_t channel) { return variance_term(p, i, channel, p.batch_mean[channel]); },
        [&](int64_t channel, double sum) { p.batch_var[channel] = sum / count; });
  }
  const int lane = int(threadIdx.x) % width;
  for (int64_t left = int64_t(blockIdx.x) * width; left < p.channels; left += int64_t(gridDim.x) * width) {
    const int64_t channel = left + lane;
    if (int(threadIdx.x) >= width || channel >= p.channels) continue;
    const double mean = p.batch_mean ? p.batch_mean[channel] : number(p.mean, p.statistics_dtype, channel);
    const double var = p.batch_mean ? p.batch_var[channel] : number(p.var, p.statistics_dtype, channel);
    const double bias = p.bias ? number(p.bias, p.bias_dtype, channel) : 0;
    ChannelFactors<acc_t<T>>(p, channel).set_statistics(mean, var, p.eps, weight_of(p, channel), bias);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    join_gradients_kernel(const BatchNormParams p, int64_t parts, int width) {
  const double count = double(p.outer * p.inner);
  const auto r_of = [&](int64_t channel) {
    return 1 / ::sqrt(number(p.var, p.statistics_dtype, channel) + p.eps);
  };
  sum_rows<kThreads>(
      p.channels, width, parts,
      [&](int64_t i, int64_t channel) { return p.partials[i * 2 * p.channels + channel]; },
      [&](int64_t channel, double sum) {
        if (p.dbias) put_number(p.dbias, p.bias_dtype, channel, sum);
        ChannelFactors<acc_t<T>> factors(p, channel);
        if (p.of_batch) factors.set_constant(weight_of(p, channel), r_of(channel), count, sum);
      });
  sum_rows<kThreads>(
      p.channels, width, parts,
      [&](int64_t i, int64_t channel) { return p.partials[(i * 2 + 1) * p.channels + channel]; },
      [&](int64_t channel, double product) {
        const double r = r_of(channel);
        if (p.dweight) put_number(p.dweight, p.weight_dtype, channel, product * r);
        ChannelFactors<acc_t<T>> factors(p, channel);
        if (p.of_batch) factors.set_slope(weight_of(p, channel), r, count, product);
      });
}

// ---- elements -------------------------------------------------------------------------------------------

// Blocks along y take pieces of the rows; `width` threads share a piece.
template <class T, Act A, bool kBackward>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    runs_kernel(const BatchNormParams p, int64_t rows, int64_t pieces, int width) {
  const int lane = int(threadIdx.x) % width, group = int(threadIdx.x) / width, groups = kThreads / width;
  const int64_t step = int64_t(gridDim.x) * groups, channels_step = step % p.channels;
  const int64_t first = int64_t(blockIdx.x) * groups + group, first_channel = first % p.channels;
  for (int64_t at = blockIdx.y; at < pieces; at += gridDim.y) {
    const Range piece = part_of(p.inner, kPieceLength, at);
    int64_t channel = first_channel;  // no division in the loop
    for (int64_t row = first; row < rows; row += step) {
      const Factors<acc_t<T>, 1> factors(p, channel, kBackward ? kFactors : kConstant);
      for (int64_t i = piece.begin + lane * 8; i < piece.end; i += width * 8)
        elements<T, A, kBackward>(p, factors, row * p.inner + i, piece.end - i);
      channel += channels_step;
      if (channel >= p.channels) channel -= p.channels;
    }
  }
}

template <class T, Act A, bool kBackward>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    columns_kernel(const BatchNormParams p, int64_t parts, int width) {
  for (int64_t item = blockIdx.x; item < parts; item += gridDim.x) {
    const BatchNormPart part = part_at(p, item);
    for (int64_t left = 0; left < p.channels; left += kColumns) {
      const int64_t channel = left + int64_t(threadIdx.x) % width * 8, n = p.channels - channel;
      const Factors<acc_t<T>, 8> factors(p, channel, kBackward ? kFactors : kConstant);
      for_rows(p, part, channel, width, [&](int64_t at) { elements<T, A, kBackward>(p, factors, at, n); });
    }
  }
}

template <bool kBackward>
void run_elements(const BatchNormParams& p, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if (channels_inside(p)) {
        const int width = power_of_two(ceil_div(p.channels, 8), kThreads);
        launch(columns_kernel<T, A, kBackward>, grid_size(part_count(p)), kThreads, 0, stream, p,
               part_count(p), width);
      } else {
        const int64_t rows = p.outer * p.channels, pieces = piece_count(p);
        const int width = power_of_two(ceil_div(p.inner, 8), kThreads), groups = kThreads / width;
        const dim3 grid(grid_size(ceil_div(rows, groups)), grid_rows(pieces));
        launch(runs_kernel<T, A, kBackward>, grid, kThreads, 0, stream, p, rows, pieces, width);
      }
    });
  });
}

int sum_width(const BatchNormParams& p) {
  return power_of_two(ceil_div(channels_inside(p) ? p.channels : p.inner_per_part, 8), kThreads);
}

}  // namespace

namespace cuda {

void batch_norm_statistics(const BatchNormParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(statistics_kernel<T>, grid_size(items), kThreads, 0, stream, p, items, sum_width(p));
  });
}

void batch_norm_gradient_sums(const BatchNormParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      launch(gradient_sums_kernel<T, A>, grid_size(items), kThreads, 0, stream, p, items, sum_width(p));
    });
  });
}

void batch_norm_join_statistics(const BatchNormParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch_sum_rows<kThreads>(join_statistics_kernel<T>, channels, stream, p, part_count(p));
  });
}

void batch_norm_join_gradients(const BatchNormParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch_sum_rows<kThreads>(join_gradients_kernel<T>, channels, stream, p, part_count(p));
  });
}

void batch_norm_act_forward(const BatchNormParams& p, int64_t, void* stream) {
  run_elements<false>(p, stream);
}
void batch_norm_act_backward(const BatchNormParams& p, int64_t, void* stream) {
  run_elements<true>(p, stream);
}

}  // namespace cuda
}  // namespace aigc
