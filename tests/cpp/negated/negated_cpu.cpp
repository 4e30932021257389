#include "negated/negated.h"

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

void negated_elements(const NegatedParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for_vectors<T>(begin, end, [&](int64_t i, auto whole) {
      const Vec<T> x = load_lanes(static_cast<const T*>(p.x) + i, end - i, whole);
      store_lanes(static_cast<T*>(p.y) + i, -x, end - i, whole);
    });
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
