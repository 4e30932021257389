#include "sample_sqnorm/sample_sqnorm.h"

#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int kChains = 4;  // independent additions, or their latency would set the pace

template <class T>
double dot(const T* a, const T* b, int64_t length) {
  double total = 0;
  int64_t i = 0;
  while (i < length) {
    Vec<T> sums[kChains] = {};
    const int64_t block_end = min(i + kSumBlock * kChains * kWidth<T>, length);
    for (; i + kChains * kWidth<T> <= block_end; i += kChains * kWidth<T>)
      for (int chain = 0; chain < kChains; ++chain)
        sums[chain] += load(a + i + chain * kWidth<T>) * load(b + i + chain * kWidth<T>);
    for (int chain = 0; i < block_end; ++chain, i += kWidth<T>)
      sums[chain] += load_upto(a + i, block_end - i) * load_upto(b + i, block_end - i);
    total += horizontal_sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

}  // namespace

void sample_dot_chunks(const SampleParams& p, int64_t begin, int64_t end) {
  const int64_t per_sample = chunks_per_sample(p);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item) {
      const SampleChunk c = chunk_at(p, item, per_sample);
      const double sum =
          dot(static_cast<const T*>(p.a) + c.first, static_cast<const T*>(p.b) + c.first, c.length);
      if (p.partials)
        p.partials[item] = sum;
      else
        static_cast<acc_t<T>*>(p.dot)[c.sample] = acc_t<T>(sum);
    }
  });
}

void sample_dot_reduce(const SampleParams& p, int64_t begin, int64_t end) {
  const int64_t per_sample = chunks_per_sample(p);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t sample = begin; sample < end; ++sample)
      static_cast<acc_t<T>*>(p.dot)[sample] = acc_t<T>(sum_of(p.partials + sample * per_sample, per_sample));
  });
}

void sample_scale_chunks(const SampleParams& p, int64_t begin, int64_t end) {
  const int64_t per_sample = chunks_per_sample(p);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item) {
      const SampleChunk c = chunk_at(p, item, per_sample);
      const auto* a = static_cast<const T*>(p.a) + c.first;
      auto* y = static_cast<T*>(p.y) + c.first;
      const acc_t<T> s = static_cast<const acc_t<T>*>(p.s)[c.sample];
      for_vectors<T>(0, c.length, [&](int64_t i, auto whole) {
        store_lanes(y + i, load_lanes(a + i, c.length - i, whole) * s, c.length - i, whole);
      });
    }
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
