#include "pixel_norm/pixel_norm.h"

#include "core/math.h"
#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// The sums and their use, by the order of differentiation. Inputs are x, dy, u.
template <class T, int kOrder>
struct Formula {
  static constexpr int kInputs = kOrder + 1;
  static constexpr int kSums = kOrder == 0 ? 1 : kOrder == 1 ? 2 : 4;

  static void products(const Vec<T> (&input)[kInputs], Vec<T> (&product)[kSums]) {
    product[0] = input[0] * input[0];
    if constexpr (kOrder >= 1) product[1] = input[0] * input[1];
    if constexpr (kOrder == 2) {
      product[2] = input[0] * input[2];
      product[3] = input[1] * input[2];
    }
  }

  // The factors of the inputs in the result.
  static void factors(const PixelNormParams& p, const double (&sum)[kSums], acc_t<T> (&factor)[kInputs]) {
    using S = acc_t<T>;
    const double channels = double(p.channels);
    const double r = 1 / ::sqrt(sum[0] / channels + p.eps);
    if constexpr (kOrder == 0) {
      factor[0] = S(r);
    } else {
      const double cubed = r * r * r / channels;
      if constexpr (kOrder == 1) {
        factor[0] = S(-cubed * sum[1]);
        factor[1] = S(r);
      } else {
        factor[0] = S(-cubed * (sum[3] - 3 * r * r / channels * sum[1] * sum[2]));
        factor[1] = S(-cubed * sum[2]);
        factor[2] = S(-cubed * sum[1]);
      }
    }
  }
};

// Calls f(i, n) for the vectors of [0, length): n is kWidth<T>, as a constant, but for the last one.
template <class T, class F>
inline void for_vectors(int64_t length, F&& f) {
  int64_t i = 0;
  for (; i + kWidth<T> <= length; i += kWidth<T>) f(i, int64_t{kWidth<T>});
  if (i < length) f(i, length - i);
}

template <class T, int kOrder>
struct Pixels {
  using F = Formula<T, kOrder>;
  using S = acc_t<T>;

  const PixelNormParams& p;
  const T* inputs[3];
  T* y;

  explicit Pixels(const PixelNormParams& p)
      : p(p),
        inputs{static_cast<const T*>(p.x), static_cast<const T*>(p.dy), static_cast<const T*>(p.u)},
        y(static_cast<T*>(p.y)) {}

  void load_inputs(int64_t at, int64_t n, Vec<T> (&input)[F::kInputs]) const {
    for (int k = 0; k < F::kInputs; ++k) input[k] = load_upto(inputs[k] + at, n);
  }

  // One pixel, whose channels lie side by side.
  void row(int64_t item) const {
    const int64_t first = item * p.channels;
    Vec<T> input[F::kInputs], product[F::kSums];
    BlockSum<T> sums[F::kSums];
    for_vectors<T>(p.channels, [&](int64_t i, int64_t n) {
      load_inputs(first + i, n, input);
      F::products(input, product);
      for (int s = 0; s < F::kSums; ++s) sums[s].add(product[s]);
    });
    double total[F::kSums];
    for (int s = 0; s < F::kSums; ++s) total[s] = sums[s].total();
    S factor[F::kInputs];
    F::factors(p, total, factor);
    for_vectors<T>(p.channels, [&](int64_t i, int64_t n) {
      load_inputs(first + i, n, input);
      Vec<T> result = factor[0] * input[0];
      for (int k = 1; k < F::kInputs; ++k) result += factor[k] * input[k];
      store_upto(y + first + i, result, n);
    });
  }

  // Up to kPixelTile adjacent pixels, whose channels are not adjacent: sums for each column.
  void tile(int64_t item) const {
    const int64_t tiles = pixel_items(p) / p.outer;
    const int64_t left = item % tiles * kPixelTile;
    const int64_t width = min(p.inner - left, kPixelTile);
    const int64_t first = item / tiles * p.channels * p.inner + left;

    Vec<T> input[F::kInputs], product[F::kSums];
    double sums[kPixelTile][F::kSums] = {};
    for (int64_t channel = 0; channel < p.channels;) {
      S block[F::kSums][kPixelTile] = {};
      const int64_t block_end = min(channel + kSumBlock, p.channels);
      for (; channel < block_end; ++channel)
        for_vectors<T>(width, [&](int64_t i, int64_t n) {
          load_inputs(first + channel * p.inner + i, n, input);
          F::products(input, product);
          for (int s = 0; s < F::kSums; ++s) {
            const Vec<T> sum = load_bytes<Vec<T>>(block[s] + i) + product[s];
            std::memcpy(block[s] + i, &sum, sizeof(sum));
          }
        });
      for (int64_t i = 0; i < width; ++i)
        for (int s = 0; s < F::kSums; ++s) sums[i][s] += block[s][i];
    }
    S factors[F::kInputs][kPixelTile] = {};
    for (int64_t i = 0; i < width; ++i) {
      S factor[F::kInputs];
      F::factors(p, sums[i], factor);
      for (int k = 0; k < F::kInputs; ++k) factors[k][i] = factor[k];
    }
    for (int64_t channel = 0; channel < p.channels; ++channel)
      for_vectors<T>(width, [&](int64_t i, int64_t n) {
        const int64_t at = first + channel * p.inner + i;
        load_inputs(at, n, input);
        Vec<T> result = load_bytes<Vec<T>>(factors[0] + i) * input[0];
        for (int k = 1; k < F::kInputs; ++k) result += load_bytes<Vec<T>>(factors[k] + i) * input[k];
        store_upto(y + at, result, n);
      });
  }
};

template <int kOrder>
void run(const PixelNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const Pixels<T, kOrder> pixels(p);
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
