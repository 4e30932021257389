// The vertical pass sums rows of x into rows of a buffer that stays in cache and has zeros where the image is
// padded: four rows at a time, so that a pixel is loaded and converted once for all rows that it contributes
// to. The horizontal pass makes rows of y from these, one by one, so that y is a single stream of stores;
// only for channels-last does it make four at a time.
//
// Where pixels are adjacent (NCHW), the buffer is split into lanes of every step-th column. Output
// j * phases + phase then reads at offsets from j that are the same for all j, so that all loads are whole
// vectors. Where channels are adjacent (NHWC), vectors run along the channels.
//
// A two-dimensional filter that is an outer product, as those of setup_filter are, is separated into its
// factors.
#include "upfirdn2d/upfirdn2d.h"

#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int kRows = 4;
constexpr int64_t kHeldBytes = 24 << 10;  // of the buffer, which is to stay in L1 even if rows are long
// If input and output together do not fit into the last-level cache, the output bypasses it, which halves its
// traffic.
constexpr int64_t kPastCache = 32 << 20;
constexpr int64_t kPrefetch = 2 << 10;  // bytes ahead
// An unaligned load of 64 bytes spans two cache lines. It costs as much as joining the vector from two
// others, which uses other ports. Where multiplications leave those ports free, all vectors are joined.
constexpr bool kJoinLoads = AIGC_VECTOR_BYTES == 64;

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

template <class T>
class Filter {
 public:
  using S = acc_t<T>;
  static constexpr int W = kWidth<T>;

  explicit Filter(const Upfirdn2dParams& p) : p_(p), x_(p.x_axis), y_(p.y_axis) {
    inner_ = p.channels_last ? p.channels : 1;
    phases_ = x_.up / x_.gcd();
    step_ = x_.down / x_.gcd();
    const int64_t pixels = x_.in * y_.in + x_.out * y_.out;
    past_cache_ = p.batch * p.channels * pixels * int64_t(sizeof(T)) >= kPastCache;
    make_weights();
    make_buffers();
    make_tables();
    choose();
  }

  void band(int64_t item) const {
    const int64_t bands = fir_bands(p_), plane = item / bands, begin = start_ + item % bands * kFirRows;
    const T* x = static_cast<const T*>(p_.x) + plane * y_.in * x_.in * inner_;
    T* y = static_cast<T*>(p_.y) + plane * y_.out * x_.out * inner_;
    const int64_t end = min(begin + kFirRows, y_.out);
    if (direct_) {
      for (int64_t o = max(begin, 0); o < end; ++o) {
        gather(x, o);
        (this->*horizontal_)(buffer_.get(), y, o);
      }
    } else {
      for (int64_t o = begin; o < end; o += held_) {
        const int64_t stop = min(o + held_, end);
        for (int64_t r = o; r < stop; r += kRows) {
          S* rows = buffer_.get() + (r - o) * row_;
          const bool split_after = split_ > 1 && !split_at_once_;
          (this->*vertical_)(x, r, split_after ? line_.get() : rows);
          if (split_after)
            for (int i = 0; i < kRows; ++i) split(line_.get() + i * row_, rows + i * row_);
        }
        for (int64_t r = o; r < stop; r += kRows) (this->*horizontal_)(buffer_.get() + (r - o) * row_, y, r);
      }
    }
  }

 private:
  // ---- preparation, once for many items

  // The taps in the order in which they multiply pixels: w_y and w_x, or w of two dimensions. The gain is
  // included in w_y or w.
  void make_weights() {
    const S* f = static_cast<const S*>(p_.f);
    w_x_.allocate(x_.taps);
    w_y_.allocate(y_.taps);
    S* w_x = w_x_.get();
    S* w_y = w_y_.get();
    if (f == nullptr) {
      w_x[0] = w_y[0] = 1;
    } else if (p_.separable) {
      for (int64_t k = 0; k < x_.taps; ++k) w_x[k] = w_y[k] = f[k];
    } else {
      direct_ = !is_outer_product(f);
    }
    if (direct_) {
      w_.allocate(x_.taps * y_.taps);
      for (int64_t k = 0; k < x_.taps * y_.taps; ++k)
        w_[k] = S(p_.gain) * f[p_.flip_filter ? k : x_.taps * y_.taps - 1 - k];
    } else {
      if (!p_.flip_filter) {
        reverse(w_x, x_.taps);
        reverse(w_y, y_.taps);
      }
      for (int64_t k = 0; k < y_.taps; ++k) w_y[k] *= S(p_.gain);
    }
  }

  static void reverse(S* w, int64_t n) {
    for (int64_t k = 0; k < n / 2; ++k) {
      const S other = w[n - 1 - k];
      w[n - 1 - k] = w[k];
      w[k] = other;
    }
  }

  // Whether every tap is a product of a w_y and a w_x, which are written, up to the rounding errors of an
  // outer product of this type; false for NaN.
  bool is_outer_product(const S* f) {
    const auto magnitude = [](S v) { return v < 0 ? -v : v; };
    constexpr S kRoundings = sizeof(S) == 4 ? S(0x1p-22) : S(0x1p-51);
    int64_t pivot = 0;
    for (int64_t k = 0; k < x_.taps * y_.taps; ++k)
      if (magnitude(f[k]) > magnitude(f[pivot])) pivot = k;
    const int64_t row = pivot / x_.taps, column = pivot % x_.taps;
    S* w_x = w_x_.get();
    S* w_y = w_y_.get();
    for (int64_t k = 0; k < x_.taps; ++k) w_x[k] = f[row * x_.taps + k] / f[pivot];
    for (int64_t k = 0; k < y_.taps; ++k) w_y[k] = f[k * x_.taps + column];
    for (int64_t a = 0; a < y_.taps; ++a)
      for (int64_t b = 0; b < x_.taps; ++b) {
        const S tap = f[a * x_.taps + b];
        if (!(magnitude(w_y[a] * w_x[b] - tap) <= kRoundings * magnitude(tap))) return false;
      }
    return true;
  }

  // A row of the buffer has the columns from first_ on that some output reads, including those of a last,
  // partial vector, and room for a whole vector to be stored where only a part of it is needed.
  void make_buffers() {
    const int64_t vectors = ceil_div(x_.out, phases_ * W);
    const int64_t outputs = inner_ == 1 ? vectors * W * phases_ : x_.out;
    first_ = x_.first(0);
    const int64_t last = floor_div(x_.origin(outputs - 1) + x_.taps - 1, x_.up);
    split_ = inner_ == 1 ? step_ : 1;
    lane_ = round_up(max(1, ceil_div(last - first_ + 1, split_)), W);
    row_ = round_up(lane_ * split_ * inner_ + W, 16);
    x_begin_ = max(0, first_);
    x_end_ = max(x_begin_, min(x_.in, last + 1));
    held_ = max(kRows, min(kFirRows, kHeldBytes / int64_t(row_ * sizeof(S)) / kRows * kRows));
    buffer_.allocate(row_ * (direct_ ? ceil_div(y_.taps, y_.up) : held_));
    if (split_ > 1) line_.allocate(row_ * kRows);
    zeros_.allocate((x_end_ - x_begin_) * inner_);
  }

  // For each phase of the outputs of a row: where in the buffer its first output reads, and the taps.
  void make_tables() {
    most_taps_ = ceil_div(x_.taps, x_.up) * (direct_ ? ceil_div(y_.taps, y_.up) : 1);
    counts_.allocate(phases_);
    offsets_.allocate(phases_ * most_taps_);
    weights_.allocate(phases_ * most_taps_);
    if (direct_) return;  // row by row
    for (int64_t phase = 0; phase < phases_; ++phase) add_taps(phase, 0, w_x_.get());
  }

  void add_taps(int64_t phase, int64_t buffer_row, const S* w) const {
    const int64_t first = x_.first(phase) - first_, tap = x_.tap(phase), count = x_.count(phase);
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = phase * most_taps_ + counts_[phase]++, column = first + t;
      offsets_[at] = buffer_row * row_ + (column % split_ * lane_ + column / split_) * inner_;
      weights_[at] = w[tap + t * x_.up];
    }
  }

  void choose() {
    const int64_t taps = direct_ || x_.taps % x_.up != 0 ? 0 : x_.taps / x_.up;
    if (direct_) {
      horizontal_ = choose_horizontal<1>(taps);
      return;
    }
    horizontal_ = choose_horizontal<kRows>(taps);
    vertical_ = &Filter::vertical_any;
    choose_vertical<1, 1>();
    choose_vertical<2, 1>();
    choose_vertical<4, 1>();
    choose_vertical<1, 2>();
    choose_vertical<1, 4>();
  }

  using Horizontal = void (Filter::*)(const S*, T*, int64_t) const;
  template <int kRowCount>
  Horizontal choose_horizontal(int64_t taps) const {
    if (inner_ > 1) {
      if constexpr (kRowCount > 1) switch (taps) {
          case 2:
            return &Filter::pixels<kRowCount, 2>;
          case 4:
            return &Filter::pixels<kRowCount, 4>;
          case 12:
            return &Filter::pixels<kRowCount, 12>;
        }
      return &Filter::pixels<kRowCount, 0>;
    }
    if constexpr (kRowCount > 1) {
      const int64_t delta = x_.first(1) - first_;
      switch (phases_ * 1000 + split_ * 100 + taps) {
        case 1104:
          return &Filter::columns<kRowCount, 1, 4, 1>;
        case 1112:
          return &Filter::columns<kRowCount, 1, 12, 1>;
        case 1204:
          return &Filter::columns<kRowCount, 1, 4, 2>;
        case 1212:
          return &Filter::columns<kRowCount, 1, 12, 2>;
        case 2102:
          return delta == 0 ? &Filter::columns<kRowCount, 2, 2, 1, 0>
                            : &Filter::columns<kRowCount, 2, 2, 1, 1>;
        case 2106:
          return delta == 0 ? &Filter::columns<kRowCount, 2, 6, 1, 0>
                            : &Filter::columns<kRowCount, 2, 6, 1, 1>;
        case 4101:
          return &Filter::columns<kRowCount, 4, 1>;
        case 4103:
          return &Filter::columns<kRowCount, 4, 3>;
      }
    }
    switch (phases_) {
      case 1:
        return &Filter::columns<kRowCount, 1, 0>;
      case 2:
        return &Filter::columns<kRowCount, 2, 0>;
      case 4:
        return &Filter::columns<kRowCount, 4, 0>;
    }
    return &Filter::columns<kRowCount, 0, 0>;
  }

  // For these factors, four rows from start_ + 4 * i on have the same taps for all i.
  template <int kUp, int kDown>
  void choose_vertical() {
    if (y_.up != kUp || y_.down != kDown || (y_.taps != 4 && y_.taps != 12)) return;
    // With down 1, rows begin at or before row 0 with one of tap 0.
    start_ = y_.origin(0) - floor_div(y_.origin(0), kUp) * kUp;
    start_ = kDown == 1 ? -start_ : 0;
    split_at_once_ = split_ == 2 && x_end_ - x_begin_ >= 2 * W;
    vertical_ = y_.taps == 4 ? &Filter::vertical<kUp, kDown, 4> : &Filter::vertical<kUp, kDown, 12>;
  }

  // ---- vertical: rows o to o + kRows - 1 of the output, columns of x

  // Calls f(i, whole) for the first column of every vector of a row; the last two vectors may overlap.
  template <class F>
  void for_row(F&& f) const {
    const int64_t n = (x_end_ - x_begin_) * inner_;
    if (n >= W) {
      for (int64_t i = 0; i + W <= n; i += W) f(i, std::true_type());
      if (n % W != 0) f(n - W, std::true_type());
    } else if (n > 0) {
      f(0, std::false_type());
    }
  }

  const T* row_of(const T* x, int64_t i) const {
    return i >= 0 && i < y_.in ? x + (i * x_.in + x_begin_) * inner_ : zeros_.get();
  }

  // Prefetches as many rows of x as one call advances by, from kPrefetch bytes after `row` on: many rows are
  // read at once, a few lines of each, which the hardware does not recognize as a stream. They may be outside
  // of x.
  void prefetch(const T* x, int64_t row, int64_t rows) const {
    const auto bytes = [&](int64_t n) { return n * x_.in * inner_ * int64_t(sizeof(T)); };
    const uintptr_t begin = reinterpret_cast<uintptr_t>(x) + bytes(row) + kPrefetch;
    for (int64_t i = 0; i < bytes(rows); i += 64)
      __builtin_prefetch(reinterpret_cast<const void*>(begin + i));
  }

  template <int kUp, int kDown, int kTaps>
  void vertical(const T* x, int64_t o, S* rows) const {
    constexpr auto first = [](int r) { return (r * kDown + kUp - 1) / kUp; };
    constexpr int kInputs = first(kRows - 1) + kTaps / kUp;
    const int64_t n = (x_end_ - x_begin_) * inner_, top = y_.first(o);
    const T* input[kInputs];
    for (int i = 0; i < kInputs; ++i) input[i] = row_of(x, top + i);
    prefetch(x, top + kInputs, kRows * kDown / kUp);
    S w[kTaps];
    for (int k = 0; k < kTaps; ++k) w[k] = w_y_[k];
    const int64_t margin = (x_begin_ - first_) * inner_;
    // Two vectors at a time, so that a tap is broadcast once for both.
    const auto two = [&](int64_t at) {
      Vec<T> sum[kRows][2] = {};
#pragma GCC unroll 32
      for (int i = 0; i < kInputs; ++i) {
        const Vec<T> v[2] = {load(input[i] + at), load(input[i] + at + W)};
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int t = i - first(r);
          if (t < 0 || t >= kTaps / kUp) continue;
          for (int half = 0; half < 2; ++half)
            sum[r][half] += w[first(r) * kUp - r * kDown + t * kUp] * v[half];
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        S* row = rows + r * row_;
        const int64_t column = margin + at;
        if (split_at_once_) {
          Vec<T> one, other;
          split_pairs(sum[r][0], sum[r][1], one, other);
          store(row + column % 2 * lane_ + column / 2, one);
          store(row + (column + 1) % 2 * lane_ + (column + 1) / 2, other);
        } else {
          store(row + column, sum[r][0]);
          store(row + column + W, sum[r][1]);
        }
      }
    };
    if (n >= 2 * W) {
      for (int64_t at = 0; at + 2 * W <= n; at += 2 * W) two(at);
      if (n % (2 * W) != 0) two(n - 2 * W);
      return;
    }
    for_row([&](int64_t at, auto whole) {
      Vec<T> sum[kRows] = {};
#pragma GCC unroll 32
      for (int i = 0; i < kInputs; ++i) {
        const Vec<T> v = load_lanes(input[i] + at, n, whole);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const int t = i - first(r);
          if (t >= 0 && t < kTaps / kUp) sum[r] += w[first(r) * kUp - r * kDown + t * kUp] * v;
        }
      }
      for (int r = 0; r < kRows; ++r) store(rows + r * row_ + margin + at, sum[r]);
    });
  }

  void vertical_any(const T* x, int64_t o, S* rows) const {
    const int64_t n = (x_end_ - x_begin_) * inner_;
    rows += (x_begin_ - first_) * inner_;
    for (int64_t r = 0; r < kRows && o + r < y_.out; ++r) {
      const int64_t top = y_.first(o + r), begin = max(0, -top), end = min(y_.count(o + r), y_.in - top);
      const S* w = w_y_.get() + y_.tap(o + r);
      for_row([&](int64_t at, auto whole) {
        Vec<T> sum = {};
        for (int64_t t = begin; t < end; ++t)
          sum += w[t * y_.up] * load_lanes(row_of(x, top + t) + at, n, whole);
        store(rows + r * row_ + at, sum);
      });
    }
  }

  // Copies the rows that output row o reads into the buffer, and their taps into the tables.
  void gather(const T* x, int64_t o) const {
    for (int64_t phase = 0; phase < phases_; ++phase) counts_[phase] = 0;
    const int64_t n = (x_end_ - x_begin_) * inner_, top = y_.first(o), count = y_.count(o);
    for (int64_t t = 0; t < count; ++t) {
      if (top + t < 0 || top + t >= y_.in) continue;
      S* row = buffer_.get() + t * row_;
      S* line = (split_ > 1 ? line_.get() : row) + (x_begin_ - first_) * inner_;
      const T* input = row_of(x, top + t);
      for_row([&](int64_t at, auto whole) { store(line + at, load_lanes(input + at, n, whole)); });
      if (split_ > 1) split(line_.get(), row);
      for (int64_t phase = 0; phase < phases_; ++phase)
        add_taps(phase, t, w_.get() + (y_.tap(o) + t * y_.up) * x_.taps);
    }
  }

  // Splits a line into lanes of every split_-th column.
  void split(const S* line, S* row) const {
    if (split_ == 2) {
      int64_t i = 0;
      for (; i + W <= lane_; i += W) {
        Vec<T> even, odd;
        split_pairs(load(line + 2 * i), load(line + 2 * i + W), even, odd);
        store(row + i, even);
        store(row + lane_ + i, odd);
      }
      for (; i < lane_; ++i) {
        row[i] = line[2 * i];
        row[lane_ + i] = line[2 * i + 1];
      }
    } else {
      for (int64_t i = 0; i < lane_; ++i)
        for (int64_t s = 0; s < split_; ++s) row[s * lane_ + i] = line[i * split_ + s];
    }
  }

  // ---- horizontal: rows o to o + kRowCount - 1 of the output, from as many rows of the buffer

  // The taps of one phase. A few are copied to memory that no store can change, so that the compiler keeps
  // them in registers.
  template <int kTaps>
  struct FewTaps {
    int64_t offset[kTaps];
    S w[kTaps];
    static constexpr int64_t count = kTaps;
  };
  template <int kTaps>
  struct ManyTaps {
    const int64_t* offset;
    const S* w;
    static constexpr int64_t count = kTaps;
  };
  struct AnyTaps {
    const int64_t* offset;
    const S* w;
    int64_t count;
  };

  static constexpr int kFewTaps = AIGC_VECTOR_BYTES == 16 ? 4 : 12;
  template <int kTaps>
  auto taps_of(int64_t phase) const {
    const int64_t* offset = offsets_.get() + phase * most_taps_;
    const S* w = weights_.get() + phase * most_taps_;
    if constexpr (kTaps == 0) {
      return AnyTaps{offset, w, counts_[phase]};
    } else if constexpr (kTaps > kFewTaps) {
      return ManyTaps<kTaps>{offset, w};
    } else {
      FewTaps<kTaps> taps;
      for (int t = 0; t < kTaps; ++t) taps.offset[t] = offset[t];
      for (int t = 0; t < kTaps; ++t) taps.w[t] = w[t];
      return taps;
    }
  }

  template <class Taps>
  Vec<T> sum(const Taps& taps, const S* at) const {
    Vec<T> result = {};
#pragma GCC unroll 12
    for (int64_t t = 0; t < taps.count; ++t) result += taps.w[t] * load(at + taps.offset[t]);
    return result;
  }

  // The sums of all phases, where column t of the buffer is tap t of phase 0 and tap t - kDelta of phase 1:
  // all offsets are known, and some of the unaligned vectors are joined from the aligned ones around them.
  template <int kPhases, int kTaps, int kSplit, int kDelta, int... t>
  void sums(const S (&w)[kPhases][kTaps], const S* at, Vec<T> (&sum)[kPhases],
            std::integer_sequence<int, t...>) const {
    Vec<T> first[kSplit], next[kSplit];
    for (int s = 0; s < kSplit; ++s) {
      first[s] = load(at + s * lane_);
      next[s] = load(at + s * lane_ + W);
    }
    for (int phase = 0; phase < kPhases; ++phase) sum[phase] = Vec<T>{};
    const auto add = [&]<int k>(std::integral_constant<int, k>) {
      constexpr int lane = k % kSplit, column = k / kSplit;
      Vec<T> v;
      if constexpr (column == 0)
        v = first[lane];
      else if constexpr (kJoinLoads && column < W && (kTaps <= 4 || column % 2 == 1))
        v = join_at<column>(first[lane], next[lane]);
      else
        v = load(at + lane * lane_ + column);
      if constexpr (k < kTaps) sum[0] += w[0][k] * v;
      if constexpr (kPhases == 2 && k >= kDelta && k - kDelta < kTaps) sum[1] += w[1][k - kDelta] * v;
    };
    (add(std::integral_constant<int, t>()), ...);
  }

  // Row by row, so that y is one stream of stores.
  template <int kRowCount, int kPhases, int kTaps, int kSplit = 0, int kDelta = 0>
  void columns(const S* rows, T* y, int64_t o) const {
    const int64_t row_begin = max(0, -o), row_end = min(kRowCount, y_.out - o), n = x_.out;
    if constexpr (kPhases == 0) {
      for (int64_t phase = 0; phase < phases_; ++phase) {
        const auto taps = taps_of<kTaps>(phase);
        for (int64_t r = row_begin; r < row_end; ++r)
          for (int64_t j = 0; j * phases_ < n; j += W) {
            T lanes[W];
            store(lanes, sum(taps, rows + r * row_ + j));
            for (int i = 0; i < W && (j + i) * phases_ + phase < n; ++i)
              y[(o + r) * n + (j + i) * phases_ + phase] = lanes[i];
          }
      }
    } else {
      constexpr int kBlock = kPhases * W;
      decltype(taps_of<kTaps>(0)) taps[kPhases];
      for (int phase = 0; phase < kPhases; ++phase) taps[phase] = taps_of<kTaps>(phase);
      [[maybe_unused]] S w[kPhases][max(kTaps, 1)];
      for (int phase = 0; phase < kPhases; ++phase)
        for (int t = 0; t < kTaps; ++t) w[phase][t] = weights_[phase * most_taps_ + t];
      const auto block = [&](const S* at, Vec<T>(&out)[kPhases]) {
        Vec<T> part[kPhases];
        if constexpr (kSplit > 0)
          sums<kPhases, kTaps, kSplit, kDelta>(w, at, part,
                                               std::make_integer_sequence<int, kTaps + kDelta>());
        else
          for (int phase = 0; phase < kPhases; ++phase) part[phase] = sum(taps[phase], at);
        if constexpr (kPhases == 1) {
          out[0] = part[0];
        } else if constexpr (kPhases == 2) {
          join_pairs(part[0], part[1], out[0], out[1]);
        } else {
          Vec<T> even[2], odd[2];
          join_pairs(part[0], part[2], even[0], even[1]);
          join_pairs(part[1], part[3], odd[0], odd[1]);
          for (int i = 0; i < 2; ++i) join_pairs(even[i], odd[i], out[2 * i], out[2 * i + 1]);
        }
      };
      // If possible, the last block overlaps the one before.
      const int64_t whole = n / kBlock * kBlock, rest = n - whole;
      for (int64_t r = row_begin; r < row_end; ++r) {
        const S* row = rows + r * row_;
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
  }

  template <int kRowCount, class Taps>
  void add(const Taps& taps, const S* at, Vec<T> (&sum)[kRowCount]) const {
    for (int r = 0; r < kRowCount; ++r) sum[r] = Vec<T>{};
#pragma GCC unroll 12
    for (int64_t t = 0; t < taps.count; ++t)
      for (int r = 0; r < kRowCount; ++r) sum[r] += taps.w[t] * load(at + taps.offset[t] + r * row_);
  }

  template <int kRowCount, int kTaps>
  void pixels(const S* rows, T* y, int64_t o) const {
    const int64_t row_begin = max(0, -o), row_end = min(kRowCount, y_.out - o), row = x_.out * inner_;
    const bool one_run = phases_ == 1 && step_ == 1;  // adjacent pixels read adjacent inputs
    const int64_t n = one_run ? row : inner_;
    y += o * row;
    for (int64_t pixel = 0; pixel * n < row; ++pixel) {
      const S* at = rows + pixel / phases_ * step_ * inner_;
      const auto taps = taps_of<kTaps>(pixel % phases_);
      for (int64_t i = 0; i < n; i += W) {
        Vec<T> sum[kRowCount];
        add(taps, at + i, sum);
#pragma GCC unroll 4
        for (int r = 0; r < kRowCount; ++r)
          if (r >= row_begin && r < row_end) store_upto(y + r * row + pixel * n + i, sum[r], n - i);
      }
    }
  }

  const Upfirdn2dParams& p_;
  const FirAxis x_, y_;
  int64_t inner_, phases_,
      step_;  // elements of a pixel; output o + phases reads `step` columns further right
  bool past_cache_, direct_ = false, split_at_once_ = false;
  int64_t first_, split_, lane_, row_, x_begin_, x_end_, most_taps_, start_ = 0, held_;
  Scratch<S> w_x_, w_y_, w_, buffer_, line_, weights_;
  Scratch<int64_t> counts_, offsets_;
  Scratch<T> zeros_;
  void (Filter::*vertical_)(const T*, int64_t, S*) const = nullptr;
  Horizontal horizontal_ = nullptr;
};

// Sums over one plane's band of rows, tap by tap.
template <class T>
void gradient_item(const Upfirdn2dParams& p, int64_t item) {
  const int64_t bands = gradient_bands(p), plane = item / bands;
  const FirAxis &x_axis = p.x_axis, &y_axis = p.y_axis;
  const int64_t pixel = p.channels_last ? p.channels : 1;
  const auto plane_of = [&](const void* data, const FirAxis& rows, const FirAxis& columns, bool in) {
    const int64_t size = in ? rows.in * columns.in : rows.out * columns.out;
    const int64_t at =
        p.channels_last ? plane / p.channels * p.channels * size + plane % p.channels : plane * size;
    return static_cast<const T*>(data) + at;
  };
  const T* x = plane_of(p.x, y_axis, x_axis, true);
  const T* dy = plane_of(p.dy, y_axis, x_axis, false);
  double* partial = p.partials + item * y_axis.taps * x_axis.taps;
  for (int64_t k = 0; k < y_axis.taps * x_axis.taps; ++k) partial[k] = 0;
  const int64_t begin = item % bands * kGradientRows, end = min(begin + kGradientRows, y_axis.out);
  for (int64_t oy = begin; oy < end; ++oy)
    for (int64_t ty = max(0, -y_axis.first(oy)); ty < min(y_axis.count(oy), y_axis.in - y_axis.first(oy));
         ++ty) {
      double* of_row = partial + (y_axis.tap(oy) + ty * y_axis.up) * x_axis.taps;
      const T* x_row = x + (y_axis.first(oy) + ty) * x_axis.in * pixel;
      for (int64_t ox = 0; ox < x_axis.out; ++ox) {
        const int64_t first = x_axis.first(ox), tap = x_axis.tap(ox);
        const double slope = load_scalar(dy + (oy * x_axis.out + ox) * pixel);
        for (int64_t t = max(0, -first); t < min(x_axis.count(ox), x_axis.in - first); ++t)
          of_row[tap + t * x_axis.up] += slope * load_scalar(x_row + (first + t) * pixel);
      }
    }
}

}  // namespace

void upfirdn2d_forward(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const Filter<T> filter(p);
    for (int64_t item = begin; item < end; ++item) filter.band(item);
  });
#if defined(__SSE2__)
  _mm_sfence();  // makes non-temporal stores visible before the thread reports that it is done
#endif
}

void upfirdn2d_filter_partials(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item) gradient_item<T>(p, item);
  });
}

void upfirdn2d_filter_reduce(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  const int64_t taps = p.x_axis.taps * p.y_axis.taps;
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    for (int64_t k = begin; k < end; ++k)
      static_cast<S*>(p.y)[p.flip_filter ? k : taps - 1 - k] =
          S(sum_of(p.partials + k, gradient_items(p), taps) * p.gain);
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
