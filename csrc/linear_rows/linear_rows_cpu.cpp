#include "linear_rows/linear_rows.h"

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// The sums of the lanes of W vectors, in the vectors' order.
template <class V, int W>
inline V lane_sums(V (&v)[W]) {
#pragma GCC unroll 16
  for (int n = W; n > 1; n /= 2)
#pragma GCC unroll 16
    for (int i = 0; i < n / 2; ++i) {
      V even, odd;
      split_pairs(v[2 * i], v[2 * i + 1], even, odd);
      v[i] = even + odd;
    }
  return v[0];
}

template <class T, Act A>
void layer(const LinearRowsParams& p, int64_t begin, int64_t end) {
  constexpr int W = kWidth<T>;
  static_assert(LinearRowsParams::kColumns % W == 0);
  const ClampedActivation<A, T> act(p);
  const auto *x = static_cast<const T*>(p.x), *w = static_cast<const T*>(p.w);
  const auto* b = static_cast<const T*>(p.b);
  auto* y = static_cast<T*>(p.y);
  const int64_t k_end = p.in_features, whole = k_end / W * W;
  const int64_t last = min(end * LinearRowsParams::kColumns, p.out_features);
  for (int64_t column = begin * LinearRowsParams::kColumns; column < last; column += W) {
    const int64_t n = min(last - column, int64_t(W));
    const T* weights[W];  // beyond the last column, that one's again
    for (int j = 0; j < W; ++j) weights[j] = w + (column + min(int64_t(j), n - 1)) * k_end;
    const Vec<T> bias = load_upto(b + column, n);
    for (int64_t row = 0; row < p.rows; ++row) {
      const T* features = x + row * k_end;
      Vec<T> sums[W] = {};
      for (int64_t k = 0; k < whole; k += W) {
        const Vec<T> feature = load(features + k);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) sums[j] += feature * load(weights[j] + k);
      }
      if (whole < k_end) {
        const Vec<T> feature = load_upto(features + whole, k_end - whole);
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) sums[j] += feature * load_upto(weights[j] + whole, k_end - whole);
      }
      store_upto(y + row * p.out_features + column, act.value(lane_sums(sums) + bias), n);
    }
  }
}

}  // namespace

void linear_rows(const LinearRowsParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) { layer<T, A>(p, begin, end); });
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
