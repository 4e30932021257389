#include "core/reduce.h"
#include "pixel_norm/pixel_norm_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

template <class T, int kOrder>
class Pixels {
  using F = PixelNormFormula<kOrder>;
  using S = acc_t<T>;

 public:
  explicit Pixels(const PixelNormParams& p)
      : p_(p),
        inputs_{static_cast<const T*>(p.x), static_cast<const T*>(p.dy), static_cast<const T*>(p.u)},
        y_(static_cast<T*>(p.y)),
        columns_(p.inner == 1 ? 0 : kPixelTile) {}

  // One pixel, whose channels are adjacent.
  void row(int64_t item) const {
    const int64_t first = item * p_.channels;
    BlockSum<T> sums[F::kSums];
    for_inputs(first, p_.channels, [&](const Vec<T>(&input)[F::kInputs], int64_t, auto) {
      Vec<T> product[F::kSums];
      F::products(input, [&](int s, Vec<T> a, Vec<T> b) { product[s] = a * b; });
      for (int s = 0; s < F::kSums; ++s) sums[s].add(product[s]);
    });
    double total[F::kSums];
    for (int s = 0; s < F::kSums; ++s) total[s] = sums[s].total();
    S factor[F::kInputs];
    F::factors(p_, total, factor);
    for_inputs(first, p_.channels, [&](const Vec<T>(&input)[F::kInputs], int64_t i, auto whole) {
      store_lanes(y_ + first + i, F::result(factor, input), p_.channels - i, whole);
    });
  }

  // Up to kPixelTile adjacent pixels, whose channels are not adjacent: sums for each column.
  void tile(int64_t item) {
    const int64_t tiles = pixel_items(p_) / p_.outer;
    const Range pixels = part_of(p_.inner, kPixelTile, item % tiles);
    const int64_t first = item / tiles * p_.channels * p_.inner + pixels.begin;
    double sums[F::kSums][kPixelTile];
    columns_.begin(sums[0]);
    for (int64_t channel = 0; channel < p_.channels; ++channel) {
      for_inputs(first + channel * p_.inner, pixels.size(),
                 [&](const Vec<T>(&input)[F::kInputs], int64_t i, auto) {
                   columns_.update(i, [&](Vec<T>(&sum)[F::kSums]) {
                     F::products(input, [&](int s, Vec<T> a, Vec<T> b) { sum[s] += a * b; });
                   });
                 });
      columns_.end_row();
    }
    columns_.end_block();

    S factors[F::kInputs][kPixelTile] = {};
    for (int64_t i = 0; i < pixels.size(); ++i) {
      double sum[F::kSums];
      for (int s = 0; s < F::kSums; ++s) sum[s] = sums[s][i];
      S factor[F::kInputs];
      F::factors(p_, sum, factor);
      for (int k = 0; k < F::kInputs; ++k) factors[k][i] = factor[k];
    }
    for (int64_t channel = 0; channel < p_.channels; ++channel) {
      const int64_t row = first + channel * p_.inner;
      for_inputs(row, pixels.size(), [&](const Vec<T>(&input)[F::kInputs], int64_t i, auto whole) {
        Vec<T> factor[F::kInputs];
        for (int k = 0; k < F::kInputs; ++k) factor[k] = load(factors[k] + i);
        store_lanes(y_ + row + i, F::result(factor, input), pixels.size() - i, whole);
      });
    }
  }

 private:
  // Calls f(input, i, whole) for each vector of the `length` elements from `first` on.
  template <class G>
  void for_inputs(int64_t first, int64_t length, G&& f) const {
    for_vectors<T>(0, length, [&](int64_t i, auto whole) {
      Vec<T> input[F::kInputs];
      for (int k = 0; k < F::kInputs; ++k) input[k] = load_lanes(inputs_[k] + first + i, length - i, whole);
      f(input, i, whole);
    });
  }

  const PixelNormParams& p_;
  const T* inputs_[3];
  T* y_;
  ColumnSums<T, F::kSums> columns_;
};

template <int kOrder>
void run(const PixelNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    Pixels<T, kOrder> pixels(p);
    for (int64_t item = begin; item < end; ++item) p.inner == 1 ? pixels.row(item) : pixels.tile(item);
  });
}

}  // namespace

void pixel_norm_forward(const PixelNormParams& p, int64_t begin, int64_t end) { run<0>(p, begin, end); }
void pixel_norm_backward(const PixelNormParams& p, int64_t begin, int64_t end) { run<1>(p, begin, end); }
void pixel_norm_double_backward(const PixelNormParams& p, int64_t begin, int64_t end) {
  run<2>(p, begin, end);
}

}  // namespace AIGC_ISA
}  // namespace aigc
