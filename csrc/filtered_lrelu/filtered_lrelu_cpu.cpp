// A band of rows of a plane is processed in three steps, whose buffers stay in cache: the first filter along
// the rows of x; then, a few columns at a time, the first filter down the columns, the leaky ReLU and the
// second filter down the columns; then the second filter along the rows.
//
// The columns of z are stored phase by phase, so that every phase reads and writes whole vectors, whatever
// the factors are. For that, x is split into lanes where the phases need it, and y is joined from lanes.
#include "filtered_lrelu/filtered_lrelu.h"

#include "core/math.h"
#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// ---- along the rows --------------------------------------------------------------------------------------

constexpr int kPerInput = 6;  // taps per output of the filters that have specialized code

// The lanes that the inputs of a filter are split into, and the adjacent inputs that an output reads in each.
struct Runs {
  int split, run;
};
constexpr Runs kRuns[] = {
    {.split = 1, .run = kPerInput},      // x of up 2 or 4, down 2: StyleGAN3's layers
    {.split = 2, .run = kPerInput},      // z of up 2, down 2
    {.split = 4, .run = kPerInput},      // z of up 2, down 4: the gradient of up 4, down 2
    {.split = 2, .run = kPerInput / 2},  // x of up 2, down 4
    {.split = 4, .run = kPerInput / 2},  // z of up 4, down 2
    {.split = 0, .run = 0},              // any
};

// What the outputs along one axis read, phase by phase, where the inputs are split into lanes of every
// split-th one: output q * phases + phase reads lane[i % split][i / split + q] with i = input index - base.
template <class S>
class Phases {
 public:
  using V = Vec<S>;
  static constexpr int W = kWidth<S>;

  Phases(const FirAxis& axis, const S* w, int64_t phases, int64_t base, int64_t split, int64_t lane)
      : split_(split),
        most_(ceil_div(axis.taps, axis.up)),
        offsets_(phases * most_),
        counts_(phases),
        weights_(phases * most_) {
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t count = counts_[phase] = axis.count(phase);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t i = axis.first(phase) + t - base, q = floor_div(i, split);
        offsets_[phase * most_ + t] = (i - q * split) * lane + q;
        weights_[phase * most_ + t] = w[axis.tap(phase) + t * axis.up];
      }
    }
    run_ = axis.taps % axis.up == 0 && most_ % split == 0 ? most_ / split : 0;
    if (split == 1 && run_ == kPerInput)
      while (same_ < phases && offsets_[same_ * most_] == 0) ++same_;
  }

  // Calls f with what to pass to sum() for this filter.
  template <class F>
  void choose(F&& f) const {
    dispatch_first<kRuns>([&](Runs r) { return r.run == 0 || (r.split == split_ && r.run == run_); }, f);
  }

  // The outputs of a phase from the q-th on, of the row that begins at `row`.
  template <Runs kFilter>
  V sum(std::integral_constant<Runs, kFilter>, int64_t phase, const S* row, int64_t q) const {
    constexpr int kSplit = kFilter.split;
    const int64_t* offsets = &offsets_[phase * most_];
    const S* w = &weights_[phase * most_];
    row += q;
    V sum = {};
    if constexpr (kFilter.run == 0) {
      for (int64_t t = 0; t < counts_[phase]; ++t) sum += w[t] * load(row + offsets[t]);
    } else {
#pragma GCC unroll 4
      for (int s = 0; s < kSplit; ++s) {
        const S* at = row + offsets[s];
        const V a = load(at), b = load(at + W);
        unrolled<kFilter.run>([&](auto i) { sum += w[s + i * kSplit] * load_between<i>(a, b, at); });
      }
    }
    return sum;
  }

  // All phases of a row, `lane` outputs each.
  void row(const S* in, S* out, int64_t phases, int64_t lane) const {
    if (same_ > 0 && phases == 2)
      return same_ == 1 ? together<2, 1>(in, out, lane) : together<2, 2>(in, out, lane);
    choose([&](auto how) {
      for (int64_t phase = 0; phase < phases; ++phase)
        for (int64_t q = 0; q < lane; q += W) store(out + phase * lane + q, sum(how, phase, in, q));
    });
  }

 private:
  // All phases at once. The first kSame of them read from input q on, the others from input q + 1 on.
  template <int kPhases, int kSame>
  void together(const S* in, S* out, int64_t lane) const {
    constexpr int kInputs = kPerInput + (kSame < kPhases ? 1 : 0);
    S w[kPhases][kPerInput];
    for (int phase = 0; phase < kPhases; ++phase)
      for (int t = 0; t < kPerInput; ++t) w[phase][t] = weights_[phase * most_ + t];
    for (int64_t q = 0; q < lane; q += W) {
      const V a = load(in + q), b = load(in + q + W);
      V sum[kPhases] = {};
      unrolled<kInputs>([&](auto i) {
        const V v = load_between<i>(a, b, in + q);
        for (int phase = 0; phase < kPhases; ++phase) {
          const int t = phase < kSame ? i : i - 1;
          if (t >= 0 && t < kPerInput) sum[phase] += w[phase][t] * v;
        }
      });
      for (int phase = 0; phase < kPhases; ++phase) store(out + phase * lane + q, sum[phase]);
    }
  }

  int64_t split_, most_, run_, same_ = 0;
  Scratch<int64_t> offsets_, counts_;
  Scratch<S> weights_;
};

// ---- down the columns ------------------------------------------------------------------------------------

// Filters of kPerInput taps per output that are applied together, without a buffer between them. The first
// row of z is `into` rows behind the first row of an output.
struct Stream {
  int up, down, into;
};
constexpr Stream kStreams[] = {
    {.up = 2, .down = 2, .into = 0},  // StyleGAN3's layers that keep the resolution
    {.up = 2, .down = 2, .into = 1},  // the same by another padding
    {.up = 4, .down = 2, .into = 0},  // those that double it
    {.up = 4, .down = 2, .into = 1},  // the same by another padding
    {.up = 2, .down = 4, .into = 0},  // the gradient of those
    {.up = 2, .down = 4, .into = 1},  // the same by another padding
};

// Rows of one band.
struct BandRows {
  int64_t begin, end;                // of y
  int64_t z_begin, z_end, keep_end;  // of z; the mask is written up to keep_end
  int64_t x_begin, x_end;            // of x, and of the padding around it
};

// A row of z in the buffers, phase by phase.
struct Layout {
  int64_t phases, lane, narrow_lane, margin;  // narrow: in the second buffer, which has zeros on both sides
  int64_t width() const { return lane * phases; }
  int64_t narrow_width() const { return narrow_lane * phases; }
};

// The step down the columns: from the rows `wide`, to which the first filter has been applied along the rows,
// to the rows `narrow`, to which the second filter is yet to be applied along the rows.
template <class S>
class Columns {
 public:
  using V = Vec<S>;
  static constexpr int W = kWidth<S>;

  Columns(const FilteredLreluParams& p, const Layout& layout, int64_t rows, const S* first, const S* second)
      : p_(p), f_(p.first_y), s_(p.second_y), layout_(layout), first_(first), second_(second) {
    positive_ = S(p.gain);
    negative_ = S(p.gain * p.slope);
    limit_ = S(p.clamp);
    clamped_ = p.clamp >= 0;
    writes_ = p.mask != nullptr && !p.masked;
    row_bits_ = mask_row_bytes(p) * 8;
    plane_bytes_ = mask_plane_bytes(p);
    vectors_ = layout.width() / W;
    bits_at_.allocate(vectors_);
    narrow_at_.allocate(vectors_);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t phase = v * W / layout.lane, q = v * W % layout.lane;
      bits_at_[v] = phase * mask_run_bytes(p) * 8 + q;
      narrow_at_[v] = phase * layout.narrow_lane + layout.margin + q;
    }
    const int64_t z_rows = (rows - 1) * s_.down + s_.taps + max(s_.down, s_.taps);
    strip_.allocate(min(s_.in, z_rows) * kStrip * W);
    choose();
  }

  // The rows of z, and of x, that rows [begin, end) of y need.
  BandRows rows_of(int64_t begin, int64_t end) const {
    BandRows r;
    r.begin = begin;
    r.end = end;
    r.keep_end = end == s_.out ? s_.in : s_.origin(end);
    r.z_begin = max(0, s_.origin(begin));
    r.z_end = min(s_.in, s_.origin(end - 1) + s_.taps);
    r.z_end = max(r.z_begin, writes_ ? max(r.z_end, r.keep_end) : r.z_end);
    r.x_begin = f_.first(stream_ == nullptr ? r.z_begin : aligned(r.z_begin));
    r.x_end = f_.first(r.z_end - 1) + f_.count(r.z_end - 1);
    return r;
  }

  // The most rows of x that a range may have.
  static int64_t most_rows(const FilteredLreluParams& p, int64_t rows) {
    const FirAxis &f = p.first_y, &s = p.second_y;
    const int64_t z_rows = min(s.in, (rows - 1) * s.down + max(s.taps, 2 * s.down)) + lrelu_phases(p);
    return ceil_div(z_rows + f.taps, f.up) + 1;
  }

  void run(const BandRows& r, const S* wide, S* narrow, uint8_t* mask) const {
    const Call call{r, wide, narrow, mask};
    int64_t v = 0;
    if (stream_ != nullptr && r.z_end > r.z_begin) {
      for (; v < vectors_; ++v) (this->*stream_)(call, v);
    } else {
      for (; v + kStrip <= vectors_; v += kStrip) strip<kStrip>(call, v);
      for (; v < vectors_; ++v) strip<1>(call, v);
    }
    end_runs(r, mask);
  }

 private:
  static constexpr int kStrip = 4;  // vectors

  struct Call {
    const BandRows& r;
    const S* wide;
    S* narrow;
    uint8_t* mask;  // of this plane
  };

  // t of a vector of z, whose bits begin at bit `at` of the mask.
  [[gnu::always_inline]] V activate(V z, uint8_t* mask, int64_t at, bool keep) const {
    if (p_.masked) {
      V t = z * select(mask_at(mask, at), broadcast<V>(positive_), broadcast<V>(negative_));
      if (clamped_) t = select(mask_at(mask + plane_bytes_, at), t, V{});
      return t;
    }
    const Mask<S> branch = ~(z <= V{});
    V t = z * select(branch, broadcast<V>(positive_), broadcast<V>(negative_));
    if (keep) put_bits(mask, at, mask_to_bits(branch));
    if (clamped_) {
      if (keep) put_bits(mask + plane_bytes_, at, mask_to_bits((t <= limit_) & (t >= -limit_)));
      t = clamp(t, -limit_, limit_);
    }
    return t;
  }

  static Mask<S> mask_at(const uint8_t* mask, int64_t at) {
    uint32_t bits = mask[at / 8] >> at % 8;
    if constexpr (W == 16) bits |= uint32_t(mask[at / 8 + 1]) << 8;
    return bits_to_mask<S>(bits);
  }

  static void put_bits(uint8_t* mask, int64_t at, uint32_t bits) {
    if constexpr (W < 8) {  // several vectors per byte, which come in order
      mask[at / 8] = uint8_t((at % 8 == 0 ? 0 : mask[at / 8]) | bits << at % 8);
    } else {
      for (int byte = 0; byte < W / 8; ++byte) mask[at / 8 + byte] = uint8_t(bits >> 8 * byte);
    }
  }

  // Clears the unused last byte of each run.
  void end_runs(const BandRows& r, uint8_t* mask) const {
    if (!writes_ || layout_.lane % 16 == 0) return;
    const int64_t run = mask_run_bytes(p_);
    for (int plane = 0; plane < (clamped_ ? 2 : 1); ++plane)
      for (int64_t m = r.z_begin; m < r.keep_end; ++m)
        for (int64_t phase = 0; phase < layout_.phases; ++phase)
          mask[plane * plane_bytes_ + (m * layout_.phases + phase + 1) * run - 1] = 0;
  }

  // For any factors and taps: all rows of z go to a buffer, and from there to y.
  template <int kVectors>
  void strip(const Call& c, int64_t v) const {
    const BandRows& r = c.r;
    const int64_t width = layout_.width();
    S* strip = strip_.get();
    for (int64_t m = r.z_begin; m < r.z_end; ++m) {
      const int64_t count = f_.count(m);
      const S* w = first_ + f_.tap(m);
      const S* from = c.wide + (f_.first(m) - r.x_begin) * width + v * W;
      V sum[kVectors] = {};
      for (int64_t t = 0; t < count; ++t)
        for (int i = 0; i < kVectors; ++i) sum[i] += w[t * f_.up] * load(from + t * width + i * W);
      const bool keep = writes_ && m < r.keep_end;
      for (int i = 0; i < kVectors; ++i)
        store(strip + ((m - r.z_begin) * kVectors + i) * W,
              activate(sum[i], c.mask, m * row_bits_ + bits_at_[v + i], keep));
    }
    for (int64_t o = r.begin; o < r.end; ++o) {
      const int64_t top = s_.origin(o), begin = max(0, r.z_begin - top), end = min(s_.taps, r.z_end - top);
      V sum[kVectors] = {};
      for (int64_t k = begin; k < end; ++k)
        for (int i = 0; i < kVectors; ++i)
          sum[i] += second_[k] * load(strip + ((top + k - r.z_begin) * kVectors + i) * W);
      S* row = c.narrow + (o - r.begin) * layout_.narrow_width();
      for (int i = 0; i < kVectors; ++i) store(row + narrow_at_[v + i], sum[i]);
    }
  }

  // The row of z at or before m that begins a group of kUp rows that read the same pixels.
  int64_t aligned(int64_t m) const {
    const int64_t ahead = f_.origin(m) - 1, back = ahead - floor_div(ahead, f_.up) * f_.up;
    // Of two such rows, the one that is 0 or 1 rows behind the first row of an output.
    const bool other = s_.down > f_.up && into_output(m - back) >= f_.up;
    return m - back - (other ? f_.up : 0);
  }
  int64_t into_output(int64_t m) const { return m + s_.pad - floor_div(m + s_.pad, s_.down) * s_.down; }

  void choose() {
    const auto fits = [&](Stream s) {
      return f_.up == s.up && s_.down == s.down && f_.taps == kPerInput * s.up &&
             s_.taps == kPerInput * s.down && into_output(aligned(0)) % 2 == s.into;
    };
    dispatch_first<kStreams>(fits, [&](auto shape) { stream_ = &Columns::stream<shape.value>; });
  }

  // A column of vectors. In registers are the pixels that a row of z reads, and the sums of the rows of y
  // that it contributes to.
  template <Stream kStream>
  void stream(const Call& c, int64_t v) const {
    constexpr int kUp = kStream.up, kDown = kStream.down, kInto = kStream.into;
    constexpr int kPeriod = max(kUp, kDown), N = kPerInput;
    const BandRows& r = c.r;
    const int64_t width = layout_.width(), narrow_width = layout_.narrow_width(), at = bits_at_[v];
    int64_t m = aligned(r.z_begin);
    int64_t o = floor_div(m + s_.pad, kDown) - (N - 1);  // the next row of y to be completed
    S* out = c.narrow + narrow_at_[v] - r.begin * narrow_width;
    for (int64_t i = r.begin; i < min(o, r.end); ++i) store(out + i * narrow_width, V{});
    const S* from = c.wide + v * W;
    V pixels[N] = {}, sums[N] = {};
    for (int t = 1; t < N; ++t, from += width) pixels[t] = load(from);
    while (o < r.end) {
#pragma GCC unroll 4
      for (int row = 0; row < kPeriod; ++row, ++m) {
        constexpr auto into = [](int i) { return (kInto + i) % kDown; };
        if (row % kUp == 0 && m < r.z_end) {
#pragma GCC unroll 8
          for (int t = 0; t < N - 1; ++t) pixels[t] = pixels[t + 1];
          pixels[N - 1] = load(from);
          from += width;
        }
        if (m >= r.z_begin && m < r.z_end) {
          V z = first_[kUp - 1 - row % kUp] * pixels[0];
#pragma GCC unroll 8
          for (int t = 1; t < N; ++t) z += first_[kUp - 1 - row % kUp + t * kUp] * pixels[t];
          const V t = activate(z, c.mask, m * row_bits_ + at, writes_ && m < r.keep_end);
#pragma GCC unroll 8
          for (int j = 0; j < N; ++j) sums[j] += second_[(N - 1 - j) * kDown + into(row)] * t;
        }
        if (into(row) == kDown - 1) {
          if (o >= r.begin && o < r.end) store(out + o * narrow_width, sums[0]);
          ++o;
#pragma GCC unroll 8
          for (int j = 0; j < N - 1; ++j) sums[j] = sums[j + 1];
          sums[N - 1] = V{};
        }
      }
    }
  }

  const FilteredLreluParams& p_;
  const FirAxis f_, s_;
  const Layout layout_;
  const S *first_, *second_;
  S positive_, negative_, limit_;
  bool clamped_, writes_;
  int64_t row_bits_, plane_bytes_, vectors_;
  Scratch<S> strip_;
  Scratch<int64_t> bits_at_, narrow_at_;
  void (Columns::*stream_)(const Call&, int64_t) const = nullptr;
};

// ---- bands -----------------------------------------------------------------------------------------------

template <class T>
class Bands {
 public:
  using S = acc_t<T>;
  using V = Vec<T>;
  static constexpr int W = kWidth<T>;
  static constexpr int kByte = W < 8 ? 8 : W;  // elements whose bits fill whole bytes

  explicit Bands(const FilteredLreluParams& p)
      : p_(p),
        f_(p.first_x),
        s_(p.second_x),
        rows_(ceil_div(p.second_y.out, lrelu_bands(p))),
        first_(p.first, f_.taps, p.flip_first, p.first_gain),
        second_(p.second, s_.taps, p.flip_second, p.second_gain),
        layout_(make_layout()),
        columns_(p, layout_, rows_, first_.down.get(), second_.down.get()),
        read_x_(f_, first_.along.get(), layout_.phases, x_base_, in_split_, x_lane_),
        read_z_(s_, second_.along.get(), out_split_, -layout_.margin * layout_.phases, layout_.phases,
                layout_.narrow_lane) {
    line_.allocate(x_lane_ * in_split_ + 2 * W);
    if (in_split_ > 1) lanes_.allocate(x_lane_ * in_split_ + 2 * W);
    outputs_.allocate(W * out_split_);
    if (p.channels_last) pixels_.allocate(max(f_.in, s_.out));
    wide_.allocate(Columns<S>::most_rows(p, rows_) * layout_.width());
    narrow_.allocate(rows_ * layout_.narrow_width() + W);
  }

  void band(int64_t item) const {
    const int64_t bands = lrelu_bands(p_), plane = item / bands, begin = item % bands * rows_;
    const BandRows r = columns_.rows_of(begin, min(begin + rows_, p_.second_y.out));
    const S addend = p_.b == nullptr ? S(0) : load_scalar(static_cast<const T*>(p_.b) + plane % p_.channels);
    const T* x = static_cast<const T*>(p_.x) + plane_at(p_, plane, p_.first_y.in * f_.in);
    for (int64_t i = r.x_begin; i < r.x_end; ++i) {
      S* row = &wide_[(i - r.x_begin) * layout_.width()];
      if (i >= 0 && i < p_.first_y.in)
        first_along(x + i * f_.in * pixel_stride(p_), addend, row);
      else
        std::memset(row, 0, size_t(layout_.width()) * sizeof(S));
    }
    uint8_t* mask = p_.mask == nullptr ? nullptr : p_.mask + plane * p_.first_y.out * mask_row_bytes(p_);
    columns_.run(r, wide_.get(), narrow_.get(), mask);
    BlockSum<T> sum;
    T* y = static_cast<T*>(p_.y) + plane_at(p_, plane, p_.second_y.out * s_.out);
    for (int64_t o = r.begin; o < r.end; ++o)
      second_along(&narrow_[(o - r.begin) * layout_.narrow_width()], y + o * s_.out * pixel_stride(p_), sum);
    if (p_.sums != nullptr) p_.sums[item] = sum.total();
  }

 private:
  // A filter's taps in the order in which they multiply pixels. Those down the columns include the gain.
  struct Weights {
    Scratch<S> along, down;
    Weights(const void* filter, int64_t taps, bool flip, double gain) : along(taps), down(taps) {
      for (int64_t k = 0; k < taps; ++k) {
        const S w = filter == nullptr ? S(1) : static_cast<const S*>(filter)[flip ? k : taps - 1 - k];
        along[k] = w;
        down[k] = S(gain) * w;
      }
    }
  };

  Layout make_layout() {
    Layout l;
    l.phases = lrelu_phases(p_);
    l.lane = round_up(ceil_div(f_.out, l.phases), kByte);
    l.margin = max(0, ceil_div(s_.pad, l.phases));
    in_split_ = l.phases / f_.up;
    out_split_ = l.phases / s_.down;
    x_base_ = f_.first(0);
    const int64_t furthest = f_.first(l.phases - 1) + ceil_div(f_.taps, f_.up) - 1 - x_base_;
    x_lane_ = l.lane + furthest / in_split_ + 1;
    const int64_t outputs = round_up(ceil_div(s_.out, out_split_), W);  // of one phase of y
    const int64_t reach = floor_div(s_.origin(out_split_ - 1) + s_.taps - 1, l.phases) + 1;
    l.narrow_lane = l.margin + max(l.lane, outputs + reach);
    return l;
  }

  void first_along(const T* x, S addend, S* row) const {
    const int64_t begin = max(0, x_base_), end = max(begin, min(f_.in, x_base_ + x_lane_ * in_split_));
    S* line = line_.get();
    if (p_.channels_last) {
      T* pixels = pixels_.get();
      for (int64_t j = begin; j < end; ++j) pixels[j] = x[j * p_.channels];
      x = pixels;
    }
    for_vectors<T>(begin, end, [&](int64_t j, auto whole) {
      store_lanes(line + j - x_base_, load_lanes(x + j, end - j, whole) + addend, end - j, whole);
    });
    if (in_split_ > 1) {
      for (int64_t s = 0; s < in_split_; ++s)
        for (int64_t q = 0; q < x_lane_; ++q) lanes_[s * x_lane_ + q] = line[q * in_split_ + s];
      line = lanes_.get();
    }
    read_x_.row(line, row, layout_.phases, layout_.lane);
    // Columns beyond the image must be zero for the second filter.
    for (int64_t phase = 0; phase < layout_.phases; ++phase)
      for (int64_t q = max(0, ceil_div(f_.out - phase, layout_.phases)); q < layout_.lane; ++q)
        row[phase * layout_.lane + q] = 0;
  }

  void second_along(const S* row, T* y, BlockSum<T>& sum) const {
    const int64_t n = s_.out;
    T* to = p_.channels_last ? pixels_.get() : y;
    const auto put = [&](int64_t at, V v) {
      if (at >= n) return;
      store_upto(to + at, v, n - at);
      if (p_.sums == nullptr) return;
      if (n - at >= W) return sum.add(v);
      S lanes[W] = {};
      store(lanes, v, int(n - at));
      sum.add(load(lanes));
    };
    read_z_.choose([&](auto how) {
      for (int64_t q = 0; q * out_split_ < n; q += W) {
        V out[2];
        for (int64_t phase = 0; phase < out_split_; ++phase) {
          const V v = read_z_.sum(how, phase, row, q);
          if (out_split_ <= 2)
            out[phase] = v;
          else
            for (int i = 0; i < W; ++i) outputs_[i * out_split_ + phase] = v[i];
        }
        if (out_split_ == 1) {
          put(q, out[0]);
        } else if (out_split_ == 2) {
          transpose(out);
          put(2 * q, out[0]);
          put(2 * q + W, out[1]);
        } else {
          for (int64_t i = 0; i < out_split_; ++i) put(q * out_split_ + i * W, load(&outputs_[i * W]));
        }
      }
    });
    if (p_.channels_last)
      for (int64_t j = 0; j < n; ++j) y[j * p_.channels] = to[j];
  }

  const FilteredLreluParams& p_;
  const FirAxis f_, s_;
  const int64_t rows_;  // of a band
  const Weights first_, second_;
  int64_t in_split_, out_split_;  // the number of lanes that x and y are split into
  int64_t x_base_, x_lane_;       // the first column of x that is read, and how many there are in a lane
  const Layout layout_;
  const Columns<S> columns_;
  const Phases<S> read_x_, read_z_;
  Scratch<S> line_, lanes_, wide_, narrow_, outputs_;
  Scratch<T> pixels_;  // a row of x or y, for channels-last
};

}  // namespace

void filtered_lrelu_run(const FilteredLreluParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const Bands<T> bands(p);
    for (int64_t item = begin; item < end; ++item) bands.band(item);
  });
}

void filtered_lrelu_sum(const FilteredLreluParams& p, int64_t begin, int64_t end) {
  const int64_t bands = lrelu_bands(p);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t channel = begin; channel < end; ++channel) {
      double sum = 0;
      for (int64_t plane = channel; plane < p.planes; plane += p.channels)
        for (int64_t band = 0; band < bands; ++band) sum += p.sums[plane * bands + band];
      store_scalar(static_cast<T*>(p.sum) + channel, acc_t<T>(sum));
    }
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
