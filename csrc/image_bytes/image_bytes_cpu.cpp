#include "image_bytes/image_bytes.h"

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

void image_bytes(const ImageBytesParams& p, int64_t begin, int64_t end) {
  constexpr int W = kWidth<float>;
  const auto low = float(p.low), scale = float(p.scale);
  const Vec<float> zero = broadcast<Vec<float>>(0), most = broadcast<Vec<float>>(255);
  // The sum with it has no bits behind the point, so that adding it rounds.
  const Vec<float> rounder = broadcast<Vec<float>>(12582912);  // 1.5 * 2^23
  for (int64_t item = begin; item < end; ++item) {
    const int64_t image = item / p.height, row = item % p.height;
    uint8_t* y = p.y + item * p.width * p.channels;
    for (int64_t c = 0; c < p.channels; ++c) {
      const float* x = p.x + ((image * p.channels + c) * p.height + row) * p.width;
      for (int64_t i = 0; i < p.width; i += W) {
        const int64_t n = min(p.width - i, int64_t(W));
        Vec<float> v = (load_upto(x + i, n) - low) * scale;
        v = select(v > zero, v, zero);  // false for NaN
        v = select(v < most, v, most);
        float levels[W];
        store(levels, (v + rounder) - rounder);
        for (int64_t j = 0; j < n; ++j) y[(i + j) * p.channels + c] = uint8_t(levels[j]);
      }
    }
  }
}

}  // namespace AIGC_ISA
}  // namespace aigc
