// A band of rows of a plane goes through in three steps, whose buffers stay in cache: the first filter along
// the rows of x; then, for a few columns at a time, the first filter down the column, the leaky ReLU and the
// second filter down the column; then the second filter along the rows.
//
// The columns of z lie phase by phase: all that a phase reads and writes is whole vectors, whatever the
// factors are. x is taken apart for that where the phases need it, and y is put together.
#include "filtered_lrelu/filtered_lrelu.h"

#include "core/math.h"
#include "core/reduce.h"
#include "core/scratch.h"
#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return -FirAxis::floor_div(-a, b); }
constexpr int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// What the outputs of one axis read, phase by phase, where every `split`-th input lies side by side.
template <class S>
struct Phases {
  Scratch<int64_t> offsets, counts;
  Scratch<S> weights;
  int64_t most = 0;

  // Output q * phases + phase reads lane[i % split][i / split + q] with i = index of the input - base.
  void make(const FirAxis& axis, const S* w, int64_t phases, int64_t base, int64_t split, int64_t lane) {
    most = ceil_div(axis.taps, axis.up);
    counts.allocate(phases);
    offsets.allocate(phases * most);
    weights.allocate(phases * most);
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t count = counts.get()[phase] = axis.count(phase);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t i = axis.first(phase) + t - base, q = FirAxis::floor_div(i, split);
        offsets.get()[phase * most + t] = (i - q * split) * lane + q;
        weights.get()[phase * most + t] = w[axis.tap(phase) + t * axis.up];
      }
    }
  }
};

template <class T>
class Bands {
 public:
  using S = acc_t<T>;
  using V = Vec<T>;
  static constexpr int W = kWidth<T>;
  static constexpr int kStrip = 4;           // vectors of a strip of columns
  static constexpr int kByte = W < 8 ? 8 : W;  // elements whose bits are whole bytes

  explicit Bands(const FilteredLreluParams& p)
      : p_(p), fx_(p.first_x), fy_(p.first_y), sx_(p.second_x), sy_(p.second_y) {
    make_weights(p.first, fx_.taps, p.flip_first, p.first_gain, first_w_, first_wy_);
    make_weights(p.second, sx_.taps, p.flip_second, p.second_gain, second_w_, second_wy_);
    positive_ = S(p.gain);
    negative_ = S(p.gain * p.slope);
    limit_ = S(p.clamp);
    const int64_t bands = lrelu_bands(p);
    rows_ = ceil_div(sy_.out, bands);
    phases_ = lrelu_phases(p);
    make_columns();
    make_rows();
    choose();
  }

  void band(int64_t item) const {
    const int64_t bands = lrelu_bands(p_), plane = item / bands;
    Range r;
    r.begin = item % bands * rows_;
    r.end = min(r.begin + rows_, sy_.out);
    const bool last = item % bands == bands - 1, writes = p_.mask != nullptr && !p_.masked;
    // The rows of z that this band needs, of which it keeps the bits up to where the next band begins.
    r.keep_end = last ? sy_.in : sy_.origin(r.end);
    r.z_begin = max(0, sy_.origin(r.begin));
    r.z_end = min(sy_.in, sy_.origin(r.end - 1) + sy_.taps);
    r.z_end = max(r.z_begin, writes ? max(r.z_end, r.keep_end) : r.z_end);
    r.x_begin = fy_.first(r.z_begin);
    const int64_t x_end = fy_.first(r.z_end - 1) + fy_.count(r.z_end - 1);
    uint8_t* mask = p_.mask == nullptr ? nullptr : p_.mask + plane * fy_.out * mask_row_bytes(p_);
    const S addend = p_.b == nullptr ? S(0) : load_scalar(static_cast<const T*>(p_.b) + plane % p_.channels);
    const T* x = static_cast<const T*>(p_.x) + plane * fy_.in * fx_.in;
    for (int64_t i = r.x_begin; i < x_end; ++i) first_along(x, i, addend, wide_.get() + (i - r.x_begin) * width_);
    (this->*middle_)(r, mask);
    BlockSum<T> sum;
    T* y = static_cast<T*>(p_.y) + plane * sy_.out * sx_.out;
    for (int64_t o = r.begin; o < r.end; ++o)
      second_along(y + o * sx_.out, narrow_.get() + (o - r.begin) * narrow_row_, sum);
    if (p_.sums != nullptr) p_.sums[item] = sum.total();
  }

 private:
  struct Range {
    int64_t begin, end;               // rows of y
    int64_t z_begin, z_end, keep_end;  // of z
    int64_t x_begin;                  // the first of x, which may lie outside of the image
  };

  // ---- preparation, once for many items

  static void make_weights(const void* filter, int64_t taps, bool flip, double gain, Scratch<S>& along,
                           Scratch<S>& down) {
    along.allocate(taps);
    down.allocate(taps);
    for (int64_t k = 0; k < taps; ++k) {
      const S w = filter == nullptr ? S(1) : static_cast<const S*>(filter)[flip ? k : taps - 1 - k];
      along.get()[k] = w;
      down.get()[k] = S(gain) * w;
    }
  }

  void make_columns() {
    in_split_ = phases_ / fx_.up;
    out_split_ = phases_ / sx_.down;
    const int64_t columns = ceil_div(fx_.out, phases_);  // of a phase
    lane_ = ceil_div(columns, kByte) * kByte;
    width_ = lane_ * phases_;
    // x: the first column that is read, and how many of each lane.
    x_base_ = fx_.first(0);
    const int64_t furthest = fx_.first(phases_ - 1) + ceil_div(fx_.taps, fx_.up) - 1 - x_base_;
    x_lane_ = lane_ + furthest / in_split_ + 1;
    line_.allocate(x_lane_ * in_split_ + W);
    if (in_split_ > 1) lanes_.allocate(x_lane_ * in_split_ + W);
    first_.make(fx_, first_w_.get(), phases_, x_base_, in_split_, x_lane_);
    // What the second filter reads: zeros on both sides.
    margin_ = max(0, ceil_div(sx_.pad, phases_));
    const int64_t outputs = ceil_div(ceil_div(sx_.out, out_split_), W) * W;  // of a phase of y
    const int64_t reach = FirAxis::floor_div(sx_.origin(out_split_ - 1) + sx_.taps - 1, phases_) + 1;
    narrow_lane_ = margin_ + max(lane_, outputs + reach);
    narrow_row_ = narrow_lane_ * phases_;
    second_.make(sx_, second_w_.get(), out_split_, -margin_ * phases_, phases_, narrow_lane_);
    outputs_.allocate(W * out_split_);
    vectors_ = width_ / W;
    bits_at_.allocate(vectors_);
    narrow_at_.allocate(vectors_);
    const int64_t run = mask_run_bytes(p_);
    for (int64_t v = 0; v < vectors_; ++v) {
      const int64_t phase = v * W / lane_, q = v * W % lane_;
      bits_at_.get()[v] = phase * run * 8 + q;
      narrow_at_.get()[v] = phase * narrow_lane_ + margin_ + q;
    }
  }

  void make_rows() {
    const int64_t z_rows = min(sy_.in, (rows_ - 1) * sy_.down + sy_.taps + max(sy_.down, sy_.taps));
    const int64_t x_rows = ceil_div(z_rows + fy_.taps, fy_.up) + 1;
    wide_.allocate(x_rows * width_);
    strip_.allocate(z_rows * kStrip * W);
    narrow_.allocate(rows_ * narrow_row_);
  }

  void choose() { middle_ = &Bands::middle_any; }

  // ---- along a row of x

  void first_along(const T* x, int64_t i, S addend, S* row) const {
    if (i < 0 || i >= fy_.in) {
      std::memset(row, 0, size_t(width_) * sizeof(S));
      return;
    }
    const int64_t begin = max(0, x_base_), end = max(begin, min(fx_.in, x_base_ + x_lane_ * in_split_));
    S* line = line_.get();
    x += i * fx_.in + begin;
    for_vectors<T>(0, end - begin, [&](int64_t j, auto whole) {
      store_lanes(line + begin - x_base_ + j, load_lanes(x + j, end - begin - j, whole) + addend,
                  end - begin - j, whole);
    });
    if (in_split_ > 1) {
      for (int64_t s = 0; s < in_split_; ++s)
        for (int64_t q = 0; q < x_lane_; ++q) lanes_.get()[s * x_lane_ + q] = line[q * in_split_ + s];
      line = lanes_.get();
    }
    for (int64_t phase = 0; phase < phases_; ++phase) {
      const int64_t count = first_.counts.get()[phase];
      const int64_t* offsets = first_.offsets.get() + phase * first_.most;
      const S* weights = first_.weights.get() + phase * first_.most;
      S* out = row + phase * lane_;
      for (int64_t q = 0; q < lane_; q += W) {
        V sum = {};
        for (int64_t t = 0; t < count; ++t) sum += weights[t] * load(line + q + offsets[t]);
        store(out + q, sum);
      }
      // No pixels: whatever reads them must find zeros.
      for (int64_t q = max(0, ceil_div(fx_.out - phase, phases_)); q < lane_; ++q) out[q] = 0;
    }
  }

  // ---- down a column: the first filter, the leaky ReLU, the second filter

  // t of a vector of z, whose mask bits begin at bit `at` of the row.
  V activate(V z, uint8_t* row, int64_t at, bool keep) const {
    if (p_.masked) {
      V t = z * select(mask_at(row, at), broadcast<V>(positive_), broadcast<V>(negative_));
      if (p_.clamp >= 0) t = select(mask_at(row + mask_plane_bytes(p_), at), t, V{});
      return t;
    }
    const Mask<T> branch = ~(z <= V{});
    V t = z * select(branch, broadcast<V>(positive_), broadcast<V>(negative_));
    if (keep) put_bits(row, at, mask_to_bits(branch));
    if (p_.clamp >= 0) {
      if (keep) put_bits(row + mask_plane_bytes(p_), at, mask_to_bits((t <= limit_) & (t >= -limit_)));
      t = clamp(t, -limit_, limit_);
    }
    return t;
  }

  static Mask<T> mask_at(const uint8_t* row, int64_t at) {
    uint32_t bits = row[at / 8] >> at % 8;
    if constexpr (W == 16) bits |= uint32_t(row[at / 8 + 1]) << 8;
    return bits_to_mask<T>(bits);
  }

  static void put_bits(uint8_t* row, int64_t at, uint32_t bits) {
    if constexpr (W < 8) {  // several vectors to a byte, the first of which comes first
      row[at / 8] = uint8_t((at % 8 == 0 ? 0 : row[at / 8]) | bits << at % 8);
    } else {
      for (int byte = 0; byte < W / 8; ++byte) row[at / 8 + byte] = uint8_t(bits >> 8 * byte);
    }
  }

  // The rest of each run's bits.
  void end_runs(const Range& r, uint8_t* mask) const {
    if (mask == nullptr || p_.masked || lane_ % 16 == 0) return;
    const int64_t run = mask_run_bytes(p_);
    for (int plane = 0; plane < (p_.clamp >= 0 ? 2 : 1); ++plane)
      for (int64_t m = r.z_begin; m < r.keep_end; ++m)
        for (int64_t phase = 0; phase < phases_; ++phase)
          mask[plane * mask_plane_bytes(p_) + (m * phases_ + phase + 1) * run - 1] = 0;
  }

  void middle_any(const Range& r, uint8_t* mask) const {
    int64_t v = 0;
    for (; v + kStrip <= vectors_; v += kStrip) strip<kStrip>(r, mask, v);
    for (; v < vectors_; ++v) strip<1>(r, mask, v);
    end_runs(r, mask);
  }

  template <int kVectors>
  void strip(const Range& r, uint8_t* mask, int64_t v) const {
    const int64_t row_bytes = mask_row_bytes(p_);
    S* strip = strip_.get();
    for (int64_t m = r.z_begin; m < r.z_end; ++m) {
      const int64_t count = fy_.count(m);
      const S* w = first_wy_.get() + fy_.tap(m);
      const S* from = wide_.get() + (fy_.first(m) - r.x_begin) * width_ + v * W;
      V sum[kVectors] = {};
      for (int64_t t = 0; t < count; ++t)
        for (int i = 0; i < kVectors; ++i) sum[i] += w[t * fy_.up] * load(from + t * width_ + i * W);
      uint8_t* row = mask == nullptr ? nullptr : mask + m * row_bytes;
      const bool keep = mask != nullptr && m < r.keep_end;
      for (int i = 0; i < kVectors; ++i)
        store(strip + ((m - r.z_begin) * kVectors + i) * W,
              activate(sum[i], row, bits_at_.get()[v + i], keep));
    }
    for (int64_t o = r.begin; o < r.end; ++o) {
      const int64_t top = sy_.origin(o), begin = max(0, r.z_begin - top), end = min(sy_.taps, r.z_end - top);
      const S* from = strip + (top - r.z_begin) * kVectors * W;
      V sum[kVectors] = {};
      for (int64_t k = begin; k < end; ++k)
        for (int i = 0; i < kVectors; ++i) sum[i] += second_wy_.get()[k] * load(from + (k * kVectors + i) * W);
      S* row = narrow_.get() + (o - r.begin) * narrow_row_;
      for (int i = 0; i < kVectors; ++i) store(row + narrow_at_.get()[v + i], sum[i]);
    }
  }

  // ---- along a row of y

  void second_along(T* y, const S* row, BlockSum<T>& sum) const {
    const int64_t n = sx_.out;
    const auto put = [&](int64_t at, V v) {
      if (at >= n) return;
      store_upto(y + at, v, n - at);
      if (p_.sums == nullptr) return;
      if (n - at >= W) return sum.add(v);
      S lanes[W] = {};
      store(lanes, v, int(n - at));
      sum.add(load(lanes));
    };
    for (int64_t q = 0; q * out_split_ < n; q += W) {
      V out[2];
      for (int64_t phase = 0; phase < out_split_; ++phase) {
        const int64_t count = second_.counts.get()[phase];
        const int64_t* offsets = second_.offsets.get() + phase * second_.most;
        const S* weights = second_.weights.get() + phase * second_.most;
        V v = {};
        for (int64_t t = 0; t < count; ++t) v += weights[t] * load(row + q + offsets[t]);
        if (out_split_ <= 2)
          out[phase] = v;
        else
          for (int i = 0; i < W; ++i) outputs_.get()[i * out_split_ + phase] = v[i];
      }
      if (out_split_ == 1) {
        put(q, out[0]);
      } else if (out_split_ == 2) {
        V a, b;
        join_pairs(out[0], out[1], a, b);
        put(2 * q, a);
        put(2 * q + W, b);
      } else {
        for (int64_t i = 0; i < out_split_; ++i) put(q * out_split_ + i * W, load(outputs_.get() + i * W));
      }
    }
  }

  const FilteredLreluParams& p_;
  const FirAxis fx_, fy_, sx_, sy_;
  S positive_, negative_, limit_;
  int64_t rows_, phases_, in_split_, out_split_, lane_, width_, vectors_;
  int64_t x_base_, x_lane_, margin_, narrow_lane_, narrow_row_;
  Scratch<S> first_w_, first_wy_, second_w_, second_wy_;
  Phases<S> first_, second_;
  Scratch<S> line_, lanes_, wide_, strip_, narrow_, outputs_;
  Scratch<int64_t> bits_at_, narrow_at_;
  void (Bands::*middle_)(const Range&, uint8_t*) const = nullptr;
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
