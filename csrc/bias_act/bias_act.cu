// A block works on one chunk of rows at a time, a thread on eight neighbouring elements of a row (a byte of
// each mask plane). The traffic is that of the CPU kernel: forward 2e, backward 2e + 1/8 per plane, or 3e for
// smooth activations.
//
// `threads_per_row` threads share a row, as many as it has work for, and a block processes as many rows at
// once as that leaves threads for. Where the bias is constant on a row (NCHW), the row's threads sum its
// gradient by shuffles. Where the bias runs along the row (NHWC, NC), a thread keeps the bias of its eight
// columns in registers, goes down the chunk's rows, and sums its columns. Both orders depend only on the
// shape.
#include "bias_act/bias_act.h"
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;

// Blocks per multiprocessor that the registers must suffice for. Left to itself, the compiler aims for more
// and spills.
template <class T>
constexpr int kBlocks = sizeof(acc_t<T>) == 4 ? 2 : 1;
constexpr int kColumns = kThreads * 8;  // of a row, that a block processes at once

// What is added to x: bias + strength*noise, for the eight elements of a thread.
template <class T>
struct Addend {
  acc_t<T> value[8];
};

template <class T, Act A, bool kSave>
struct Forward {
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, const Addend<T>& add,
                               acc_t<T> (&)[8]) {
    using S = acc_t<T>;
    constexpr bool kBranchPlane = kSave && (A == Act::relu || A == Act::lrelu);
    const int64_t at = row * p.row_length + i;
    const ClampedActivation<A, S> act(p);
    S v[8];
    load<8>(static_cast<const T*>(p.x) + at, n, v);
    unsigned branch = 0, inside = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const S z = v[j] + add.value[j], t = act.unclamped(z);
      v[j] = act.clamped ? act.clamp(t) : t;
      if (kBranchPlane && !(z <= 0)) branch |= 1u << j;
      if (kSave && v[j] == t) inside |= 1u << j;
    }
    store<8>(static_cast<T*>(p.y) + at, n, v);
    if (kSave) {
      uint8_t* byte = p.mask + row * mask_row_bytes(p) + i / 8;
      if (kBranchPlane) {
        *byte = uint8_t(branch);
        byte += p.plane_bytes;
      }
      if (act.clamped) *byte = uint8_t(inside);
    }
  }
};

template <class T, Act A>
struct Backward {
  // Leaves the gradient of z in g.
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, const Addend<T>& add,
                               acc_t<T> (&g)[8]) {
    using S = acc_t<T>;
    const int64_t at = row * p.row_length + i;
    const ClampedActivation<A, S> act(p);
    load<8>(static_cast<const T*>(p.dy) + at, n, g);
    if constexpr (is_piecewise_linear(A)) {
      const uint8_t* byte = p.mask + row * mask_row_bytes(p) + i / 8;
      unsigned branch = 0xff, inside = 0xff;
      if constexpr (A != Act::linear) {
        branch = *byte;
        byte += p.plane_bytes;
      }
      if (act.clamped) inside = *byte;
      const S negative = S(p.gain * p.alpha);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const S below = A == Act::relu ? S(0) : g[j] * negative;  // relu: 0 whatever dy is
        g[j] = !(inside >> j & 1) ? S(0) : branch >> j & 1 ? g[j] * act.gain : below;
      }
    } else {
      S x[8];
      load<8>(static_cast<const T*>(p.x) + at, n, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) g[j] = act.gradient(x[j] + add.value[j], g[j]);
    }
    store<8>(static_cast<T*>(p.dz) + at, n, g);
  }
};

template <class T, Act A>
struct DoubleBackward {
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, const Addend<T>& add,
                               acc_t<T> (&g)[8]) {
    using S = acc_t<T>;
    const int64_t at = row * p.row_length + i;
    const ClampedActivation<A, S> act(p);
    S x[8], u[8];
    load<8>(static_cast<const T*>(p.x) + at, n, x);
    load<8>(static_cast<const T*>(p.u) + at, n, u);
    load<8>(static_cast<const T*>(p.dy) + at, n, g);
#pragma unroll
    for (int j = 0; j < 8; ++j) act.second_gradients(x[j] + add.value[j], g[j], u[j], u[j], g[j]);
    store<8>(static_cast<T*>(p.dz) + at, n, u);
    store<8>(static_cast<T*>(p.dz2) + at, n, g);
  }
};

// The sum of term(j) over the first n of eight elements.
template <class Term>
__device__ double eight(int n, Term&& term) {
  decltype(term(0)) sum = 0;
#pragma unroll
  for (int j = 0; j < 8; ++j)
    if (j < n) sum += term(j);
  return sum;
}

// Rows with the bias constant on each. Returns the thread's sum of (gradient of z)*noise.
template <class T, class Pass, bool kSum>
__device__ double walk_planes(const BiasActParams& p, Range rows, int threads_per_row) {
  using S = acc_t<T>;
  const auto* bias = static_cast<const T*>(p.bias);
  const auto* noise = static_cast<const T*>(p.noise);
  const S strength = noise ? to_acc(*static_cast<const T*>(p.strength)) : S(0);
  const int rows_at_once = kThreads / threads_per_row;
  const int group = int(threadIdx.x) / threads_per_row, lane = int(threadIdx.x) % threads_per_row;
  // The step to the next rows, in samples and channels: no division in the loop.
  int64_t sample = (rows.begin + group) / p.channels, channel = (rows.begin + group) % p.channels;
  const int64_t samples_step = rows_at_once / p.channels, channels_step = rows_at_once % p.channels;
  double strength_sum = 0;
  for (int64_t base = rows.begin; base < rows.end; base += rows_at_once) {
    const int64_t row = base + group;
    double row_sum = 0;
    if (row < rows.end) {
      const S b = bias ? to_acc(bias[channel]) : S(0);
      // One noise image for all samples, or one for each.
      const T* row_noise = noise ? noise + (p.noise_period == p.inner ? 0 : sample * p.inner) : nullptr;
      for (int64_t i = int64_t(lane) * 8; i < p.row_length; i += int64_t(threads_per_row) * 8) {
        const int n = int(min(p.row_length - i, 8));
        S e[8] = {}, g[8];
        if (noise) load<8>(row_noise + i, n, e);
        Addend<T> add;
#pragma unroll
        for (int j = 0; j < 8; ++j) add.value[j] = b + strength * e[j];
        Pass::apply(p, row, i, n, add, g);
        if constexpr (kSum) {
          if (p.bias_partials) row_sum += eight(n, [&](int j) { return g[j]; });
          if (p.strength_partials) strength_sum += eight(n, [&](int j) { return g[j] * e[j]; });
        }
      }
    }
    if constexpr (kSum) {
      if (p.bias_partials) {
        row_sum = group_sum<kThreads>(row_sum, threads_per_row);
        if (lane == 0 && row < rows.end) p.bias_partials[row] = row_sum;
      }
    }
    sample += samples_step;
    channel += channels_step;
    if (channel >= p.channels) channel -= p.channels, ++sample;
  }
  return strength_sum;
}

// Where a block has all columns of merged rows, it sums them over the periods of the bias too: only the first
// period of the chunk's partial sums is used then.
__host__ __device__ constexpr bool folds_periods(const BiasActParams& p) { return p.row_length <= kColumns; }

// Rows along each of which the bias runs.
template <class T, class Pass, bool kSum>
__device__ double walk_pixels(const BiasActParams& p, int64_t chunk, Range rows, int threads_per_row) {
  using S = acc_t<T>;
  const auto* bias = static_cast<const T*>(p.bias);
  const auto* noise = static_cast<const T*>(p.noise);
  const S strength = noise ? to_acc(*static_cast<const T*>(p.strength)) : S(0);
  const int rows_at_once = kThreads / threads_per_row;
  const int group = int(threadIdx.x) / threads_per_row, lane = int(threadIdx.x) % threads_per_row;
  double strength_sum = 0;
  for (int64_t left = 0; left < p.row_length; left += kColumns) {
    const int64_t i = left + lane * 8;
    S b[8] = {};
    if (bias && i < p.row_length) {
      int64_t within = i % p.inner, channel = i / p.inner % p.channels;
      for (int j = 0; j < 8 && i + j < p.row_length; ++j) {
        b[j] = to_acc(bias[channel]);
        if (++within == p.inner) {
          within = 0;
          if (++channel == p.channels) channel = 0;
        }
      }
    }
    ThreadSums<S, 1, 8> columns;
    int64_t noise_at = noise ? (rows.begin + group) % p.noise_period : 0;
    const int64_t noise_step = noise ? rows_at_once % p.noise_period : 0;
    for (int64_t row = rows.begin + group; row < rows.end; row += rows_at_once) {
      const int64_t row_end = min((row + 1) * p.row_length, p.numel);  // the last row may be partial
      const int n = int(min(row_end - row * p.row_length - i, 8));
      if (n <= 0) break;
      const S row_noise = noise ? to_acc(noise[noise_at]) : S(0);
      if ((noise_at += noise_step) >= p.noise_period) noise_at -= p.noise_period;
      Addend<T> add;
      S g[8];
#pragma unroll
      for (int j = 0; j < 8; ++j) add.value[j] = b[j] + strength * row_noise;
      Pass::apply(p, row, i, n, add, g);
      if constexpr (kSum) {
        if (p.strength_partials) strength_sum += eight(n, [&](int j) { return g[j]; }) * double(row_noise);
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (j < n) columns.block[0][j] += g[j];
        columns.end_term();
      }
    }
    if constexpr (kSum) {
      if (p.bias_partials) {
        double* partials = p.bias_partials + chunk * p.row_length;
        columns.end_block();
        if (folds_periods(p)) {
          column_sums<kThreads>(columns.total[0], threads_per_row, int(p.row_length),
                                int(p.channels * p.inner), [&](int c, double sum) { partials[c] = sum; });
        } else {
          for (int j = 0; j < 8 && i + j < p.row_length; ++j) partials[i + j] = columns.total[0][j];
        }
      }
    }
  }
  return strength_sum;
}

template <class T, class Pass, bool kSum>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    bias_act_kernel(const BiasActParams p, int64_t chunks, int threads_per_row) {
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const Range rows = part_of(p.rows, p.rows_per_chunk, chunk);
    double strength_sum = p.vec_is_bias ? walk_pixels<T, Pass, kSum>(p, chunk, rows, threads_per_row)
                                        : walk_planes<T, Pass, kSum>(p, rows, threads_per_row);
    if constexpr (kSum) {
      if (p.strength_partials) {
        strength_sum = block_sum<kThreads>(strength_sum);
        if (threadIdx.x == 0) p.strength_partials[chunk] = strength_sum;
      }
    }
  }
}

// Block 0 sums the partials of the strength, all blocks sum those of the bias.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const BiasActParams p, int64_t chunks, int width) {
  if (blockIdx.x == 0 && p.dstrength) {
    double sum = 0;
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += p.strength_partials[chunk];
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) store_scalar(static_cast<T*>(p.dstrength), acc_t<T>(sum));
  }
  if (!p.dbias) return;
  const double* partials = p.bias_partials;
  const auto result = [&](int64_t channel, double sum) {
    store_scalar(static_cast<T*>(p.dbias) + channel, acc_t<T>(sum));
  };
  if (p.vec_is_bias) {
    const int64_t period = p.channels * p.inner, periods = folds_periods(p) ? 1 : p.row_length / period;
    const auto term = [&](int64_t row, int64_t channel) {
      const double* at = partials + row / periods * p.row_length + row % periods * period + channel * p.inner;
      double sum = 0;
      for (int64_t i = 0; i < p.inner; ++i) sum += at[i];
      return sum;
    };
    sum_rows<kThreads>(p.channels, width, chunks * periods, term, result);
  } else {
    sum_rows<kThreads>(
        p.channels, width, p.rows / p.channels,
        [&](int64_t row, int64_t channel) { return partials[row * p.channels + channel]; }, result);
  }
}

template <class T, class Pass, bool kSum = false>
void run(const BiasActParams& p, int64_t chunks, void* stream) {
  const int threads_per_row = power_of_two(ceil_div(p.row_length, 8), kThreads);
  launch(bias_act_kernel<T, Pass, kSum>, grid_size(chunks), kThreads, 0, stream, p, chunks, threads_per_row);
}

template <class T, class Pass>
void run_backward(const BiasActParams& p, int64_t chunks, void* stream) {
  p.bias_partials || p.strength_partials ? run<T, Pass, true>(p, chunks, stream)
                                         : run<T, Pass, false>(p, chunks, stream);
}

}  // namespace

namespace cuda {

void bias_act_forward(const BiasActParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (is_piecewise_linear(A))
        if (p.mask) return run<T, Forward<T, A, true>>(p, chunks, stream);
      run<T, Forward<T, A, false>>(p, chunks, stream);
    });
  });
}

void bias_act_backward(const BiasActParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) { run_backward<T, Backward<T, A>>(p, chunks, stream); });
  });
}

void bias_act_double_backward(const BiasActParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (!is_piecewise_linear(A)) run_backward<T, DoubleBackward<T, A>>(p, chunks, stream);
    });
  });
}

void bias_act_reduce(const BiasActParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch_sum_rows<kThreads>(reduce_kernel<T>, channels, stream, p, chunk_count(p));
  });
}

}  // namespace cuda
}  // namespace aigc
