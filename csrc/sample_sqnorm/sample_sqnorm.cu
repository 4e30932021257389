// A block works on one chunk of a sample at a time, a thread on eight neighbouring elements. Bytes per
// element: square norm 1e, dot 2e, scale 2e.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"
#include "sample_sqnorm/sample_sqnorm.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

template <class T>
__global__ void __launch_bounds__(kThreads)
    dot_kernel(const SampleParams p, int64_t chunks, int64_t per_sample) {
  using S = acc_t<T>;
  for (int64_t item = blockIdx.x; item < chunks; item += gridDim.x) {
    const SampleChunk chunk = chunk_at(p, item, per_sample);
    const auto* a = static_cast<const T*>(p.a) + chunk.first;
    const auto* b = static_cast<const T*>(p.b) + chunk.first;
    double sum = 0;
    for (int64_t i = int64_t(threadIdx.x) * 8; i < chunk.length; i += kThreads * 8) {
      S x[8], y[8], eight = 0;
      load<8>(a + i, chunk.length - i, x);
      if (a == b) {
#pragma unroll
        for (int j = 0; j < 8; ++j) eight += x[j] * x[j];
      } else {
        load<8>(b + i, chunk.length - i, y);
#pragma unroll
        for (int j = 0; j < 8; ++j) eight += x[j] * y[j];
      }
      sum += eight;
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) {
      if (p.partials)
        p.partials[item] = sum;
      else
        static_cast<S*>(p.dot)[chunk.sample] = S(sum);
    }
  }
}

// A warp for each sample.
template <class T>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const SampleParams p, int64_t per_sample) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  for (int64_t base = int64_t(blockIdx.x) * kWarps; base < p.samples; base += int64_t(gridDim.x) * kWarps) {
    const int64_t sample = base + warp;
    double sum = 0;
    if (sample < p.samples)
      for (int64_t i = lane; i < per_sample; i += 32) sum += p.partials[sample * per_sample + i];
    sum = group_sum<kThreads>(sum, 32);
    if (sample < p.samples && lane == 0) static_cast<acc_t<T>*>(p.dot)[sample] = acc_t<T>(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scale_kernel(const SampleParams p, int64_t chunks, int64_t per_sample) {
  using S = acc_t<T>;
  for (int64_t item = blockIdx.x; item < chunks; item += gridDim.x) {
    const SampleChunk chunk = chunk_at(p, item, per_sample);
    const auto* a = static_cast<const T*>(p.a) + chunk.first;
    auto* y = static_cast<T*>(p.y) + chunk.first;
    const S s = static_cast<const S*>(p.s)[chunk.sample];
    for (int64_t i = int64_t(threadIdx.x) * 8; i < chunk.length; i += kThreads * 8) {
      S x[8];
      load<8>(a + i, chunk.length - i, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) x[j] *= s;
      store<8>(y + i, chunk.length - i, x);
    }
  }
}

}  // namespace

namespace cuda {

void sample_dot_chunks(const SampleParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(dot_kernel<T>, grid_size(chunks), kThreads, 0, stream, p, chunks, chunks_per_sample(p));
  });
}

void sample_dot_reduce(const SampleParams& p, int64_t samples, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(reduce_kernel<T>, grid_size(ceil_div(samples, kWarps)), kThreads, 0, stream, p,
           chunks_per_sample(p));
  });
}

void sample_scale_chunks(const SampleParams& p, int64_t chunks, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(scale_kernel<T>, grid_size(chunks), kThreads, 0, stream, p, chunks, chunks_per_sample(p));
  });
}

}  // namespace cuda
}  // namespace aigc
