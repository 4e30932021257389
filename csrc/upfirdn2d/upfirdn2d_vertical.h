// The vertical pass: from rows of x to rows of the buffer.
#pragma once

#include "upfirdn2d/upfirdn2d_layout.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int64_t kPrefetch = 2 << 10;  // bytes ahead

// A filter down the columns. With up and down swapped, it is that of the gradient.
struct VerticalShape {
  int up, down, taps;
};
constexpr VerticalShape
    kVerticalShapes[] =
        {
            {.up = 1, .down = 1, .taps = 4},   // StyleGAN2: the blur around convolutions that resample
            {.up = 1, .down = 1, .taps = 12},  // the same with the longer filters of StyleGAN3
            {.up = 2, .down = 1, .taps = 4},   // StyleGAN2: the generator's image, for the next resolution
            {.up = 2, .down = 1, .taps = 12},
            {.up = 4, .down = 1, .taps = 4},  // two resolutions at once
            {.up = 4, .down = 1, .taps = 12},
            {.up = 1, .down = 2, .taps = 4},  // StyleGAN2: the shortcut of a discriminator's block
            {.up = 1, .down = 2, .taps = 12},
            {.up = 1, .down = 4, .taps = 4},
            {.up = 1, .down = 4, .taps = 12},
};

template <class T>
class Vertical {
 public:
  using S = acc_t<T>;
  static constexpr int W = kWidth<T>;

  Vertical(const FirAxis& y, int64_t x_in, const Layout& layout, const S* w)
      : y_(y), x_in_(x_in), layout_(layout), w_(w), zeros_(layout.width()) {
    if (layout.split > 1) line_.allocate(layout.row * kRows);
    const auto fits = [&](VerticalShape s) { return s.up == y.up && s.down == y.down && s.taps == y.taps; };
    dispatch_first<kVerticalShapes>(fits, [&](auto shape) {
      // Four rows from start_ + 4 * i on have the same taps for all i. With down 1, the first has tap 0.
      start_ = y.down == 1 ? floor_div(y.origin(0), y.up) * y.up - y.origin(0) : 0;
      split_at_once_ = layout.split == 2 && layout.x_end - layout.x_begin >= 2 * W;
      sum_ = &Vertical::sum_known<shape.value>;
    });
  }

  // The row, at or before row 0, from which on sum() takes kRows at a time.
  int64_t start() const { return start_; }

  // Rows o to o + kRows - 1 of the output, from the plane x.
  void sum(const T* x, int64_t o, S* rows) const {
    if (layout_.split == 1 || split_at_once_) return (this->*sum_)(x, o, rows);
    (this->*sum_)(x, o, &line_[0]);
    for (int i = 0; i < kRows; ++i) split(&line_[i * layout_.row], rows + i * layout_.row);
  }

  // Row i of x as it is.
  void copy(const T* x, int64_t i, S* row) const {
    S* line = (layout_.split > 1 ? &line_[0] : row) + layout_.margin();
    const T* input = row_of(x, i);
    const int64_t n = layout_.width();
    for_row([&](int64_t at, auto whole) { store(line + at, load_lanes(input + at, n, whole)); });
    if (layout_.split > 1) split(&line_[0], row);
  }

 private:
  // Calls f(i, whole) for the first column of every vector of a row; the last two vectors may overlap.
  template <class F>
  void for_row(F&& f) const {
    const int64_t n = layout_.width();
    if (n >= W) {
      for (int64_t i = 0; i + W <= n; i += W) f(i, std::true_type());
      if (n % W != 0) f(n - W, std::true_type());
    } else if (n > 0) {
      f(0, std::false_type());
    }
  }

  const T* row_of(const T* x, int64_t i) const {
    return i >= 0 && i < y_.in ? x + (i * x_in_ + layout_.x_begin) * layout_.inner : zeros_.get();
  }

  // Prefetches as many rows of x as one call advances by, from kPrefetch bytes after `row` on: many rows are
  // read at once, a few lines of each, which the hardware does not recognize as a stream. They may be outside
  // of x.
  void prefetch(const T* x, int64_t row, int64_t rows) const {
    const auto bytes = [&](int64_t n) { return n * x_in_ * layout_.inner * int64_t(sizeof(T)); };
    const uintptr_t begin = reinterpret_cast<uintptr_t>(x) + bytes(row) + kPrefetch;
    for (int64_t i = 0; i < bytes(rows); i += 64)
      __builtin_prefetch(reinterpret_cast<const void*>(begin + i));
  }

  template <VerticalShape kShape>
  void sum_known(const T* x, int64_t o, S* rows) const {
    constexpr int kUp = kShape.up, kDown = kShape.down, kTaps = kShape.taps;
    constexpr auto first = [](int r) { return (r * kDown + kUp - 1) / kUp; };
    constexpr int kInputs = first(kRows - 1) + kTaps / kUp;
    const int64_t n = layout_.width(), margin = layout_.margin(), top = y_.first(o);
    const T* input[kInputs];
    for (int i = 0; i < kInputs; ++i) input[i] = row_of(x, top + i);
    prefetch(x, top + kInputs, kRows * kDown / kUp);
    S w[kTaps];
    for (int k = 0; k < kTaps; ++k) w[k] = w_[k];
    const auto sum_vectors = [&]<int kVectors>(std::integral_constant<int, kVectors>, int64_t at,
                                               auto whole) {
      Vec<T> sum[kRows][kVectors] = {};
#pragma GCC unroll 32
      for (int i = 0; i < kInputs; ++i) {
        Vec<T> v[kVectors];
        for (int part = 0; part < kVectors; ++part) v[part] = load_lanes(input[i] + at + part * W, n, whole);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int t = i - first(r);
          if (t < 0 || t >= kTaps / kUp) continue;
          for (int part = 0; part < kVectors; ++part)
            sum[r][part] += w[first(r) * kUp - r * kDown + t * kUp] * v[part];
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        S* row = rows + r * layout_.row;
        const int64_t column = margin + at;
        if (kVectors == 2 && split_at_once_) {
          Vec<T> one, other;
          split_pairs(sum[r][0], sum[r][kVectors - 1], one, other);
          store(row + column % 2 * layout_.lane + column / 2, one);
          store(row + (column + 1) % 2 * layout_.lane + (column + 1) / 2, other);
        } else {
          for (int part = 0; part < kVectors; ++part) store(row + column + part * W, sum[r][part]);
        }
      }
    };
    // Two vectors at a time, so that a tap is broadcast once for both.
    if (n >= 2 * W) {
      constexpr std::integral_constant<int, 2> kTwo{};
      for (int64_t at = 0; at + 2 * W <= n; at += 2 * W) sum_vectors(kTwo, at, std::true_type());
      if (n % (2 * W) != 0) sum_vectors(kTwo, n - 2 * W, std::true_type());
    } else {
      for_row([&](int64_t at, auto whole) { sum_vectors(std::integral_constant<int, 1>(), at, whole); });
    }
  }

  void sum_any(const T* x, int64_t o, S* rows) const {
    const int64_t n = layout_.width();
    rows += layout_.margin();
    for (int64_t r = 0; r < kRows && o + r < y_.out; ++r) {
      const int64_t top = y_.first(o + r), begin = max(0, -top), end = min(y_.count(o + r), y_.in - top);
      const S* w = w_ + y_.tap(o + r);
      for_row([&](int64_t at, auto whole) {
        Vec<T> sum = {};
        for (int64_t t = begin; t < end; ++t)
          sum += w[t * y_.up] * load_lanes(row_of(x, top + t) + at, n, whole);
        store(rows + r * layout_.row + at, sum);
      });
    }
  }

  // Splits a line into the lanes of a row.
  void split(const S* line, S* row) const {
    const int64_t n = layout_.split, lane = layout_.lane;
    if (n == 2) {
      for (int64_t i = 0; i < lane; i += W) {
        Vec<T> even, odd;
        split_pairs(load(line + 2 * i), load(line + 2 * i + W), even, odd);
        store(row + i, even);
        store(row + lane + i, odd);
      }
    } else {
      for (int64_t i = 0; i < lane; ++i)
        for (int64_t s = 0; s < n; ++s) row[s * lane + i] = line[i * n + s];
    }
  }

  const FirAxis y_;
  const int64_t x_in_;
  const Layout layout_;
  const S* w_;
  int64_t start_ = 0;
  bool split_at_once_ = false;
  void (Vertical::*sum_)(const T*, int64_t, S*) const = &Vertical::sum_any;
  Scratch<S> line_;
  Scratch<T> zeros_;
};

}  // namespace
}  // namespace AIGC_ISA
}  // namespace aigc
