// Sums over a sample, and their derivatives. The set is closed under differentiation:
//     sample_dot(a, b)[n]   = sum over i of a[n, i] * b[n, i]      sample_sqnorm(g) = sample_dot(g, g)
//     sample_scale(a, s)    = a[n, i] * s[n]
//     d sample_dot:    grad_a = sample_scale(b, grad),   grad_b = sample_scale(a, grad)
//     d sample_scale:  grad_a = sample_scale(grad, s),   grad_s = sample_dot(grad, a)
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct SampleParams {
  DType dtype = DType::float32;  // of a, b and y; s and dot hold acc_t of it
  int64_t samples = 0;
  int64_t length = 0;  // elements of a sample, which are contiguous
  int64_t chunk = 0;   // an item of the kernels is a chunk of this many elements of one sample
  const void* a = nullptr;
  const void* b = nullptr;
  const void* s = nullptr;
  void* dot = nullptr;
  void* y = nullptr;
  double* partials = nullptr;  // one sum per chunk; null if a sample is one chunk, whose sum is the result
};

AIGC_INLINE int64_t chunks_per_sample(const SampleParams& p) { return ceil_div(p.length, p.chunk); }
struct SampleChunk {
  int64_t sample, first, length;  // first: of the elements of all samples
};
AIGC_INLINE SampleChunk chunk_at(const SampleParams& p, int64_t item, int64_t per_sample) {
  const int64_t sample = item / per_sample;
  const Range range = part_of(p.length, p.chunk, item - sample * per_sample);
  return {sample, sample * p.length + range.begin, range.size()};
}

}  // namespace aigc

AIGC_KERNEL(sample_dot_chunks, SampleParams)    // items: chunks
AIGC_KERNEL(sample_dot_reduce, SampleParams)    // items: samples; partials -> dot
AIGC_KERNEL(sample_scale_chunks, SampleParams)  // items: chunks
