// The horizontal pass: from rows of the buffer to as many rows of y, along columns (NCHW) or pixels (NHWC).
#pragma once

#include "upfirdn2d/upfirdn2d_layout.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// If input and output together do not fit into the last-level cache, the output bypasses it, which halves its
// traffic.
constexpr int64_t kPastCache = 32 << 20;

// p is aligned to the size of a vector.
template <class T>
void store_past_cache(T* p, Vec<T> v) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) return _mm512_stream_ps(p, (__m512)v);
#elif defined(__AVX2__)
  if constexpr (std::is_same_v<T, float>) return _mm256_stream_ps(p, (__m256)v);
#endif
  store(p, v);
}

// A filter along columns: its phases, the taps of each, and the lanes that the buffer is split into; 0 stands
// for any number of taps or lanes. If the lanes are known, so are all offsets in the buffer: column t is tap
// t of phase 0, and tap t - delta of phase 1.
struct ColumnShape {
  int phases, taps, split = 0, delta = 0;
};
constexpr ColumnShape kColumnShapes[] = {
    {.phases = 1, .taps = 4, .split = 1},              // StyleGAN2: the blur
    {.phases = 1, .taps = 12, .split = 1},             // the same with the longer filters of StyleGAN3
    {.phases = 1, .taps = 4, .split = 2},              // down 2, 4 taps
    {.phases = 1, .taps = 12, .split = 2},             // down 2, 12 taps
    {.phases = 2, .taps = 2, .split = 1, .delta = 0},  // up 2, 4 taps
    {.phases = 2, .taps = 2, .split = 1, .delta = 1},
    {.phases = 2, .taps = 6, .split = 1, .delta = 0},  // up 2, 12 taps
    {.phases = 2, .taps = 6, .split = 1, .delta = 1},
    {.phases = 4, .taps = 1},  // up 4, 4 taps
    {.phases = 4, .taps = 3},  // up 4, 12 taps
    {.phases = 1, .taps = 0},  // any taps, vector by vector
    {.phases = 2, .taps = 0},
    {.phases = 4, .taps = 0},
};

// A filter along pixels: the rows at once, and the taps of each phase, 0 for any.
struct PixelShape {
  int rows, taps;
};
constexpr PixelShape kPixelShapes[] = {
    {.rows = kRows, .taps = 2},   // up 2, 4 taps
    {.rows = kRows, .taps = 4},   // StyleGAN2: the blur, and down 2
    {.rows = kRows, .taps = 12},  // the same with the longer filters of StyleGAN3
    {.rows = kRows, .taps = 0},   // any
    {.rows = 1, .taps = 0},       // any of two dimensions
};

template <class T>
class Horizontal {
 public:
  using S = acc_t<T>;
  static constexpr int W = kWidth<T>;

  // For `count` rows at once, and this number of taps of every phase, 0 if they differ.
  Horizontal(const Upfirdn2dParams& p, const Layout& layout, const PhaseTaps<S>& table, int64_t taps,
             int64_t count)
      : table_(table), layout_(layout), x_out_(p.x_axis.out), y_out_(p.y_axis.out), count_(count) {
    const int64_t pixels = p.x_axis.in * p.y_axis.in + p.x_axis.out * p.y_axis.out;
    past_cache_ = p.batch * p.channels * pixels * int64_t(sizeof(T)) >= kPastCache;
    const auto is = [](int known, int64_t value) { return known == 0 || known == value; };
    if (layout.inner == 1) {
      const int64_t delta = layout.phases == 2 ? p.x_axis.first(1) - layout.first : 0;
      const auto fits = [&](ColumnShape s) {
        return is(s.phases, layout.phases) && is(s.taps, taps) && is(s.split, layout.split) &&
               (s.split == 0 || s.delta == delta);
      };
      dispatch_first<kColumnShapes>(fits, [&](auto shape) { run_ = &Horizontal::columns<shape.value>; });
    } else {
      const auto fits = [&](PixelShape s) { return s.rows == count && is(s.taps, taps); };
      dispatch_first<kPixelShapes>(fits, [&](auto shape) { run_ = &Horizontal::pixels<shape.value>; });
    }
  }

  // Rows of the plane or image y from o on.
  void run(const S* rows, T* y, int64_t o) const { (this->*run_)(rows, y, o); }

 private:
  template <class Taps>
  static Vec<T> sum(const Taps& taps, const S* at) {
    Vec<T> result = {};
#pragma GCC unroll 12
    for (int64_t t = 0; t < taps.count; ++t) result += taps.w[t] * load(at + taps.offset[t]);
    return result;
  }

  // The sums of all phases, where all offsets are known: unaligned vectors are joined from the aligned ones
  // around them, all of them where the multiplications leave the ports for that free.
  template <ColumnShape kShape>
  void sums(const S (&w)[kShape.phases][kShape.taps], const S* at, Vec<T> (&sum)[kShape.phases]) const {
    constexpr int kTaps = kShape.taps, kSplit = kShape.split, kDelta = kShape.delta;
    Vec<T> first[kSplit], next[kSplit];
    for (int s = 0; s < kSplit; ++s) {
      first[s] = load(at + s * layout_.lane);
      next[s] = load(at + s * layout_.lane + W);
    }
    for (Vec<T>& of_phase : sum) of_phase = Vec<T>{};
    unrolled<kTaps + kDelta>([&](auto k) {
      constexpr int lane = k % kSplit, column = k / kSplit;
      const S* lane_at = at + lane * layout_.lane;
      Vec<T> v;
      if constexpr (kTaps <= 4 || column == 0 || column % 2 == 1)
        v = load_between<column>(first[lane], next[lane], lane_at);
      else
        v = load(lane_at + column);
      if constexpr (k < kTaps) sum[0] += w[0][k] * v;
      if constexpr (kShape.phases == 2 && k >= kDelta && k - kDelta < kTaps) sum[1] += w[1][k - kDelta] * v;
    });
  }

  // Row by row, so that y is one stream of stores.
  template <ColumnShape kShape>
  void columns(const S* rows, T* y, int64_t o) const {
    constexpr int kPhases = kShape.phases, kTaps = kShape.taps, kBlock = kPhases * W;
    const auto table = table_.view();
    decltype(table.template of<kTaps>(0)) taps[kPhases];
    for (int phase = 0; phase < kPhases; ++phase) taps[phase] = table.template of<kTaps>(phase);
    [[maybe_unused]] S w[kPhases][max(kTaps, 1)];
    for (int phase = 0; phase < kPhases; ++phase)
      for (int t = 0; t < kTaps; ++t) w[phase][t] = table.weights(phase)[t];
    const auto block = [&](const S* at, Vec<T>(&out)[kPhases]) {
      if constexpr (kShape.split > 0)
        sums<kShape>(w, at, out);
      else
        for (int phase = 0; phase < kPhases; ++phase) out[phase] = sum(taps[phase], at);
      transpose(out);
    };
    // If possible, the last block overlaps the one before.
    const int64_t n = x_out_, whole = n / kBlock * kBlock, rest = n - whole;
    const int64_t row_begin = max(0, -o), row_end = min(count_, y_out_ - o);
    for (int64_t r = row_begin; r < row_end; ++r) {
      const S* row = rows + r * layout_.row;
      T* to = y + (o + r) * n;
      const bool past_cache =
          past_cache_ && n % W == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Vec<T>) == 0;
      const auto put = [&](int64_t at) {
        Vec<T> out[kPhases];
        block(row + at / kPhases, out);
        for (int i = 0; i < kPhases; ++i) {
          if (past_cache)
            store_past_cache(to + at + i * W, out[i]);
          else
            store(to + at + i * W, out[i]);
        }
      };
      for (int64_t at = 0; at < whole; at += kBlock) put(at);
      if (rest == 0) continue;
      if (whole > 0 && rest % kPhases == 0) {
        put(n - kBlock);
      } else {
        Vec<T> out[kPhases];
        block(row + whole / kPhases, out);
        for (int i = 0; i < kPhases; ++i)
          if (rest > i * W) store_upto(to + whole + i * W, out[i], rest - i * W);
      }
    }
  }

  void columns_of_any_phases(const S* rows, T* y, int64_t o) const {
    const auto table = table_.view();
    const int64_t phases = layout_.phases, n = x_out_;
    const int64_t row_begin = max(0, -o), row_end = min(count_, y_out_ - o);
    for (int64_t phase = 0; phase < phases; ++phase) {
      const auto taps = table.template of<0>(phase);
      for (int64_t r = row_begin; r < row_end; ++r)
        for (int64_t j = 0; j * phases < n; j += W) {
          T lanes[W];
          store(lanes, sum(taps, rows + r * layout_.row + j));
          for (int i = 0; i < W && (j + i) * phases + phase < n; ++i)
            y[(o + r) * n + (j + i) * phases + phase] = lanes[i];
        }
    }
  }

  template <int kCount, class Taps>
  void add(const Taps& taps, const S* at, Vec<T> (&sum)[kCount]) const {
    for (int r = 0; r < kCount; ++r) sum[r] = Vec<T>{};
#pragma GCC unroll 12
    for (int64_t t = 0; t < taps.count; ++t)
      for (int r = 0; r < kCount; ++r) sum[r] += taps.w[t] * load(at + taps.offset[t] + r * layout_.row);
  }

  template <PixelShape kShape>
  void pixels(const S* rows, T* y, int64_t o) const {
    const auto table = table_.view();
    const int64_t inner = layout_.inner, phases = layout_.phases, row = x_out_ * inner;
    const int64_t row_begin = max(0, -o), row_end = min(kShape.rows, y_out_ - o);
    const bool one_run = phases == 1 && layout_.step == 1;  // adjacent pixels read adjacent inputs
    const int64_t n = one_run ? row : inner;
    y += o * row;
    for (int64_t pixel = 0; pixel * n < row; ++pixel) {
      const S* at = rows + pixel / phases * layout_.step * inner;
      const auto taps = table.template of<kShape.taps>(pixel % phases);
      for (int64_t i = 0; i < n; i += W) {
        Vec<T> sum[kShape.rows];
        add(taps, at + i, sum);
#pragma GCC unroll 4
        for (int r = 0; r < kShape.rows; ++r)
          if (r >= row_begin && r < row_end) store_upto(y + r * row + pixel * n + i, sum[r], n - i);
      }
    }
  }

  const PhaseTaps<S>& table_;
  const Layout layout_;
  const int64_t x_out_, y_out_, count_;
  bool past_cache_;
  void (Horizontal::*run_)(const S*, T*, int64_t) const = &Horizontal::columns_of_any_phases;
};

}  // namespace
}  // namespace AIGC_ISA
}  // namespace aigc
