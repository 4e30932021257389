// A block works on one chunk of rows at a time, a thread on eight neighbouring elements of a row (a byte of
// each mask plane). Bytes per element as for the CPU kernel: forward 2e, backward 2e + 1/8 per plane, or 3e
// for smooth activations.
//
// Bias constant on a row (NCHW): `threads_per_row` threads share a row and sum it by a tree in shared memory.
// Bias along the row (NHWC, NC): a thread owns eight columns, walks down the chunk's rows, and keeps the
// column sums. Both orders depend on the shape alone.
#include "bias_act/bias_act.h"
#include "core/cuda_launch.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;

template <class T>
struct Element {  // what the eight elements at `i` of a row need besides x
  acc_t<T> add[8];
  acc_t<T> noise[8];
};

// The addend bias + strength*noise of eight elements, and the noise itself.
template <class T>
__device__ void load_addend(const BiasActParams& p, int64_t row, int64_t i, int n, Element<T>& e) {
  using S = acc_t<T>;
  const auto* bias = static_cast<const T*>(p.bias);
  const auto* noise = static_cast<const T*>(p.noise);
  const S strength = noise ? to_acc(*static_cast<const T*>(p.strength)) : S(0);
  if (p.vec_is_bias) {
    const S row_noise = noise ? to_acc(noise[row % p.noise_period]) : S(0);
    int64_t within = i % p.inner, channel = i / p.inner % p.channels;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      e.noise[j] = row_noise;
      e.add[j] = strength * row_noise + (bias && j < n ? to_acc(bias[channel]) : S(0));
      if (++within == p.inner) {
        within = 0;
        if (++channel == p.channels) channel = 0;
      }
    }
  } else {
    const S b = bias ? to_acc(bias[row % p.channels]) : S(0);
    if (noise)
      load8(noise + row / p.channels * p.inner % p.noise_period + i, n, e.noise);
    else
      for (int j = 0; j < 8; ++j) e.noise[j] = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) e.add[j] = b + strength * e.noise[j];
  }
}

template <class T, Act A, bool kSave>
struct Forward {
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, acc_t<T> (&)[8]) {
    using S = acc_t<T>;
    constexpr bool kBranchPlane = kSave && (A == Act::relu || A == Act::lrelu);
    const int64_t at = row * p.row_length + i;
    const S alpha = S(p.alpha), gain = S(p.gain), clamp = S(p.clamp);
    const bool clamped = p.clamp >= 0;
    Element<T> e;
    S v[8];
    load_addend(p, row, i, n, e);
    load8(static_cast<const T*>(p.x) + at, n, v);
    unsigned branch = 0, inside = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const S z = v[j] + e.add[j];
      S t = gain * activation<A>(z, alpha);
      if (kBranchPlane && !(z <= 0)) branch |= 1u << j;
      if (clamped) {
        if (kSave && t <= clamp && t >= -clamp) inside |= 1u << j;
        t = t > clamp ? clamp : t < -clamp ? -clamp : t;
      }
      v[j] = t;
    }
    store8(static_cast<T*>(p.y) + at, n, v);
    if (kSave) {
      uint8_t* byte = p.mask + row * mask_row_bytes(p) + i / 8;
      if (kBranchPlane) {
        *byte = uint8_t(branch);
        byte += p.plane_bytes;
      }
      if (clamped) *byte = uint8_t(inside);
    }
  }
};

template <class T, Act A>
struct Backward {
  // Leaves the gradient of z in g.
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, acc_t<T> (&g)[8]) {
    using S = acc_t<T>;
    const int64_t at = row * p.row_length + i;
    const S gain = S(p.gain);
    const bool clamped = p.clamp >= 0;
    load8(static_cast<const T*>(p.dy) + at, n, g);
    if constexpr (is_piecewise_linear(A)) {
      const uint8_t* byte = p.mask + row * mask_row_bytes(p) + i / 8;
      unsigned branch = 0xff, inside = 0xff;
      if constexpr (A != Act::linear) {
        branch = *byte;
        byte += p.plane_bytes;
      }
      if (clamped) inside = *byte;
      const S below = A == Act::relu ? S(0) : S(p.gain * p.alpha);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const S negative = A == Act::relu ? S(0) : g[j] * below;  // zero whatever dy holds
        g[j] = !(inside >> j & 1) ? S(0) : branch >> j & 1 ? g[j] * gain : negative;
      }
    } else {
      Element<T> e;
      S x[8];
      load_addend(p, row, i, n, e);
      load8(static_cast<const T*>(p.x) + at, n, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const S z = x[j] + e.add[j];
        const S t = gain * activation<A>(z, S(p.alpha));
        const bool inside = !clamped || (t <= S(p.clamp) && t >= -S(p.clamp));
        g[j] = inside ? g[j] * (gain * activation_derivative<A>(z)) : S(0);
      }
    }
    store8(static_cast<T*>(p.dz) + at, n, g);
  }
};

template <class T, Act A>
struct DoubleBackward {
  static __device__ void apply(const BiasActParams& p, int64_t row, int64_t i, int n, acc_t<T> (&g)[8]) {
    using S = acc_t<T>;
    const int64_t at = row * p.row_length + i;
    const S gain = S(p.gain);
    Element<T> e;
    S x[8], u[8];
    load_addend(p, row, i, n, e);
    load8(static_cast<const T*>(p.x) + at, n, x);
    load8(static_cast<const T*>(p.u) + at, n, u);
    load8(static_cast<const T*>(p.dy) + at, n, g);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const S z = x[j] + e.add[j];
      const S t = gain * activation<A>(z, S(p.alpha));
      const bool inside = p.clamp < 0 || (t <= S(p.clamp) && t >= -S(p.clamp));
      const S cotangent = inside ? gain * u[j] : S(0);
      g[j] = cotangent * g[j] * activation_second_derivative<A>(z);
      u[j] = cotangent * activation_derivative<A>(z);
    }
    store8(static_cast<T*>(p.dz) + at, n, u);
    store8(static_cast<T*>(p.dz2) + at, n, g);
  }
};

// Sums a value over groups of `width` neighbouring threads (a power of two); every thread of the block must
// call it.
__device__ double group_sum(double value, int width, SharedSpan<double> shared) {
  shared[threadIdx.x] = value;
  __syncthreads();
  for (int step = width / 2; step > 0; step /= 2) {
    if (int(threadIdx.x) % width < step) shared[threadIdx.x] += shared[threadIdx.x + step];
    __syncthreads();
  }
  const double sum = shared[threadIdx.x / width * width];
  __syncthreads();
  return sum;
}

template <class T, class Pass, bool kSum>
__global__ void __launch_bounds__(kThreads)
    bias_act_kernel(const BiasActParams p, int64_t chunks, int threads_per_row) {
  __shared__ SharedArray<double, kThreads> shared;
  for (int64_t chunk = blockIdx.x; chunk < chunks; chunk += gridDim.x) {
    const int64_t first = chunk * p.rows_per_chunk;
    const int64_t last = first + p.rows_per_chunk < p.rows ? first + p.rows_per_chunk : p.rows;
    double strength_sum = 0;

    if (p.vec_is_bias) {
      for (int64_t i = int64_t(threadIdx.x) * 8; i < p.row_length; i += kThreads * 8) {
        double column[8] = {};
        for (int64_t row = first; row < last; ++row) {
          const int64_t left = p.numel - row * p.row_length - i;  // the last row may be partial
          const int64_t in_row = p.row_length - i;
          const int n = int(left < in_row ? (left < 8 ? left : 8) : (in_row < 8 ? in_row : 8));
          if (n <= 0) break;
          acc_t<T> g[8] = {};
          Pass::apply(p, row, i, n, g);
          if constexpr (kSum) {
            const acc_t<T> noise =
                p.noise ? to_acc(static_cast<const T*>(p.noise)[row % p.noise_period]) : acc_t<T>(0);
            for (int j = 0; j < 8 && j < n; ++j) {
              column[j] += g[j];
              if (p.strength_partials) strength_sum += double(g[j]) * noise;
            }
          }
        }
        if constexpr (kSum)
          if (p.bias_partials)
            for (int j = 0; j < 8 && i + j < p.row_length; ++j)
              p.bias_partials[chunk * p.row_length + i + j] = column[j];
      }
    } else {
      const int rows_at_once = kThreads / threads_per_row;
      const int lane = int(threadIdx.x) % threads_per_row;
      for (int64_t base = first; base < last; base += rows_at_once) {
        const int64_t row = base + int(threadIdx.x) / threads_per_row;
        double row_sum = 0;
        for (int64_t i = int64_t(lane) * 8; row < last && i < p.row_length;
             i += int64_t(threads_per_row) * 8) {
          const int n = int(p.row_length - i < 8 ? p.row_length - i : 8);
          acc_t<T> g[8] = {};
          Pass::apply(p, row, i, n, g);
          if constexpr (kSum) {
            acc_t<T> noise[8] = {};
            if (p.strength_partials)
              load8(static_cast<const T*>(p.noise) + row / p.channels * p.inner % p.noise_period + i, n,
                    noise);
            for (int j = 0; j < 8 && j < n; ++j) {
              row_sum += g[j];
              strength_sum += double(g[j]) * noise[j];
            }
          }
        }
        if constexpr (kSum) {
          row_sum = group_sum(row_sum, threads_per_row, shared);
          if (p.bias_partials && lane == 0 && row < last) p.bias_partials[row] = row_sum;
        }
      }
    }
    if constexpr (kSum) {
      if (p.strength_partials) {
        strength_sum = group_sum(strength_sum, kThreads, shared);
        if (threadIdx.x == 0) p.strength_partials[chunk] = strength_sum;
      }
    }
  }
}

// Block 0 sums the strength's partials, every block the partials of its channels.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const BiasActParams p, int64_t chunks) {
  __shared__ SharedArray<double, kThreads> shared;
  if (blockIdx.x == 0 && p.dstrength) {
    double sum = 0;
    for (int64_t chunk = threadIdx.x; chunk < chunks; chunk += kThreads) sum += p.strength_partials[chunk];
    sum = group_sum(sum, kThreads, shared);
    if (threadIdx.x == 0) from_acc(static_cast<T*>(p.dstrength), acc_t<T>(sum));
  }
  for (int64_t channel = blockIdx.x; p.dbias && channel < p.channels; channel += gridDim.x) {
    double sum = 0;
    if (p.vec_is_bias) {
      const int64_t period = p.channels * p.inner, periods = p.row_length / period;
      const int64_t terms = chunks * periods * p.inner;
      for (int64_t t = threadIdx.x; t < terms; t += kThreads) {
        const int64_t chunk = t / (periods * p.inner), rest = t % (periods * p.inner);
        sum += p.bias_partials[chunk * p.row_length + rest / p.inner * period + channel * p.inner +
                               rest % p.inner];
      }
    } else {
      for (int64_t row = channel + threadIdx.x * p.channels; row < p.rows; row += kThreads * p.channels)
        sum += p.bias_partials[row];
    }
    sum = group_sum(sum, kThreads, shared);
    if (threadIdx.x == 0) from_acc(static_cast<T*>(p.dbias) + channel, acc_t<T>(sum));
  }
}

template <class T, class Pass>
void run(const BiasActParams& p, int64_t chunks, void* stream) {
  int threads_per_row = 1;
  while (threads_per_row < kThreads && threads_per_row * 8 < p.row_length) threads_per_row *= 2;
  const auto kernel = p.bias_partials || p.strength_partials ? bias_act_kernel<T, Pass, true>
                                                             : bias_act_kernel<T, Pass, false>;
  launch(kernel, grid_size(chunks), kThreads, 0, static_cast<cudaStream_t>(stream), p, chunks,
         threads_per_row);
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
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) { run<T, Backward<T, A>>(p, chunks, stream); });
  });
}

void bias_act_double_backward(const BiasActParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (!is_piecewise_linear(A)) run<T, DoubleBackward<T, A>>(p, chunks, stream);
    });
  });
}

void bias_act_reduce(const BiasActParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(reduce_kernel<T>, grid_size(channels), kThreads, 0, static_cast<cudaStream_t>(stream), p,
           chunk_count(p));
  });
}

}  // namespace cuda
}  // namespace aigc
