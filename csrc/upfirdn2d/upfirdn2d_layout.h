// What both passes of the CPU kernel need, and what depends on the filter and the sizes alone: the taps, and
// where a row of the buffer has its columns.
#pragma once

#include "core/scratch.h"
#include "core/simd.h"
#include "upfirdn2d/upfirdn2d.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int kRows = 4;

// The taps in the order in which they multiply pixels: the outer product of y and x, or, if there is none,
// those of two dimensions. The gain is included in y or xy.
template <class S>
struct Weights {
  Scratch<S> x, y, xy;
  bool is_outer_product = true;

  explicit Weights(const Upfirdn2dParams& p) : x(p.x_axis.taps), y(p.y_axis.taps) {
    const S* f = static_cast<const S*>(p.f);
    const int64_t taps_x = p.x_axis.taps, taps_y = p.y_axis.taps;
    if (f == nullptr) {
      x[0] = y[0] = 1;
    } else if (p.separable) {
      for (int64_t k = 0; k < taps_x; ++k) x[k] = y[k] = f[k];
    } else {
      const int64_t pivot = outer_product_pivot<S>(f, taps_y, taps_x);
      is_outer_product = pivot >= 0;
      for (int64_t k = 0; is_outer_product && k < taps_x; ++k)
        x[k] = f[pivot / taps_x * taps_x + k] / f[pivot];
      for (int64_t k = 0; is_outer_product && k < taps_y; ++k) y[k] = f[k * taps_x + pivot % taps_x];
    }
    if (is_outer_product) {
      if (!p.flip_filter) {
        reverse(&x[0], taps_x);
        reverse(&y[0], taps_y);
      }
      for (int64_t k = 0; k < taps_y; ++k) y[k] *= S(p.gain);
    } else {
      const int64_t taps = taps_x * taps_y;
      xy.allocate(taps);
      for (int64_t k = 0; k < taps; ++k) xy[k] = S(p.gain) * f[p.flip_filter ? k : taps - 1 - k];
    }
  }

 private:
  static void reverse(S* w, int64_t n) {
    for (int64_t k = 0; k < n / 2; ++k) {
      const S other = w[n - 1 - k];
      w[n - 1 - k] = w[k];
      w[k] = other;
    }
  }
};

// A row of the buffer has the columns from `first` on that some output reads, including those of a last,
// partial vector, and room for a whole vector to be stored where only a part of it is needed. It has zeros
// where these columns are outside of x.
struct Layout {
  int64_t inner;         // elements of a pixel
  int64_t phases, step;  // output o + phases reads `step` columns further right
  int64_t first, x_begin, x_end;
  int64_t split, lane, row;  // lanes of every split-th column, and their length and the row's

  Layout(const Upfirdn2dParams& p, int64_t vector) {
    const FirAxis& x = p.x_axis;
    inner = pixel_stride(p);
    phases = x.up / x.gcd();
    step = x.down / x.gcd();
    const int64_t outputs = inner == 1 ? round_up(x.out, phases * vector) : x.out;
    const int64_t last = floor_div(x.origin(outputs - 1) + x.taps - 1, x.up);
    first = x.first(0);
    split = inner == 1 ? step : 1;
    lane = round_up(max(1, ceil_div(last - first + 1, split)), vector);
    row = round_up(lane * split * inner + vector, 16);
    x_begin = max(0, first);
    x_end = max(x_begin, min(x.in, last + 1));
  }
  // Elements of a row that come from x, and those before them.
  int64_t width() const { return (x_end - x_begin) * inner; }
  int64_t margin() const { return (x_begin - first) * inner; }
};

// For each phase of the outputs of a row: where in the buffer its first output reads, and the taps.
template <class S>
class PhaseTaps {
 public:
  // `rows` of the buffer are read by an output.
  PhaseTaps(const FirAxis& x, const Layout& layout, int64_t rows)
      : x_(x),
        layout_(layout),
        most_(ceil_div(x.taps, x.up) * rows),
        counts_(layout.phases),
        offsets_(layout.phases * most_),
        weights_(layout.phases * most_) {}

  void clear() const {
    for (int64_t phase = 0; phase < layout_.phases; ++phase) counts_[phase] = 0;
  }
  // The taps w of one row, for all phases.
  void add_row(int64_t buffer_row, const S* w) const {
    const FirAxis x = x_;
    const Layout layout = layout_;  // copies, which the stores below cannot change
    const int64_t origin = buffer_row * layout.row;
    for (int64_t phase = 0; phase < layout.phases; ++phase) {
      const int64_t first = x.first(phase) - layout.first, tap = x.tap(phase), count = x.count(phase);
      int64_t at = phase * most_ + counts_[phase];
      counts_[phase] += count;
      for (int64_t t = 0; t < count; ++t, ++at) {
        const int64_t column = first + t;
        offsets_[at] = origin + (column % layout.split * layout.lane + column / layout.split) * layout.inner;
        weights_[at] = w[tap + t * x.up];
      }
    }
  }

  // The taps of one phase: kTaps, or any number if that is 0. A few are copied to memory that no store can
  // change, so that the compiler keeps them in registers.
  template <int kTaps>
  struct FewTaps {
    int64_t offset[kTaps];
    S w[kTaps];
    static constexpr int64_t count = kTaps;
  };
  struct AnyTaps {
    const int64_t* offset;
    const S* w;
    int64_t count;
  };
  static constexpr int kFewTaps = AIGC_VECTOR_BYTES == 16 ? 4 : 12;
  // What the horizontal pass reads: a copy of it can stay in registers while outputs are stored.
  struct View {
    const int64_t *counts, *offsets;
    const S* all_weights;
    int64_t most;

    template <int kTaps>
    auto of(int64_t phase) const {
      const int64_t* offset = offsets + phase * most;
      const S* w = weights(phase);
      if constexpr (kTaps == 0 || kTaps > kFewTaps) {
        return AnyTaps{offset, w, kTaps == 0 ? counts[phase] : kTaps};
      } else {
        FewTaps<kTaps> taps;
        for (int t = 0; t < kTaps; ++t) taps.offset[t] = offset[t];
        for (int t = 0; t < kTaps; ++t) taps.w[t] = w[t];
        return taps;
      }
    }
    const S* weights(int64_t phase) const { return all_weights + phase * most; }
  };
  View view() const { return {&counts_[0], &offsets_[0], &weights_[0], most_}; }

 private:
  const FirAxis& x_;
  const Layout& layout_;
  int64_t most_;  // taps of a phase
  Scratch<int64_t> counts_, offsets_;
  Scratch<S> weights_;
};

}  // namespace
}  // namespace AIGC_ISA
}  // namespace aigc
