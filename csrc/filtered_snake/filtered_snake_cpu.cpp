// A segment's x is converted into a line, the lanes of z are filtered from it, one vector of each at a time,
// and go through snake in registers into lanes of t, from which y is filtered. All of it stays in the nearest
// cache. So it is in the backward, with lanes of g beside it.
#include "core/reduce.h"
#include "core/scratch.h"
#include "filtered_snake/filtered_snake.h"
#include "filtered_snake/filtered_snake_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int kTwelve = 12;  // taps of the filters that have code of their own

// A lane's taps as they come in memory: those of U and D', or, `transposed`, of U' and D.
template <class S>
struct Taps {
  Scratch<S> w;
  int64_t first = 0, count = 0;

  void set(const S* filter, const LaneTaps& lane, bool transposed) {
    count = lane.count;
    first = transposed ? -(lane.first + count - 1) : lane.first;
    w.allocate(count);
    for (int64_t n = 0; n < count; ++n)
      w[n] = filter[lane.tap + (transposed ? count - 1 - n : n) * lane.step];
  }
};

// Two lanes, or the taps of two.
template <class X>
struct Pair {
  X lane[2];
  X& operator[](int i) { return lane[i]; }
  const X& operator[](int i) const { return lane[i]; }
};

template <class T, int kOrder, bool kBeta, bool kIsTwelve>
class Segments {
 public:
  using S = acc_t<T>;
  using V = Vec<T>;
  static constexpr int W = kWidth<T>;

  explicit Segments(const FilteredSnakeParams& p)
      : p_(p), halo_(snake_halo(p)), reach_(reach_of(p, kOrder)), up_(p.up_taps), down_(p.down_taps) {
    for (int64_t k = 0; k < p.up_taps; ++k) up_[k] = 2 * static_cast<const S*>(p.up)[k];
    for (int64_t k = 0; k < p.down_taps; ++k) down_[k] = static_cast<const S*>(p.down)[k];
    for (int lane = 0; lane < 2; ++lane) {
      const LaneTaps up = up_lane(p.up_taps, lane), down = down_lane(p.down_taps, lane);
      up_taps_[lane].set(up_.get(), up, false);
      if (kOrder > 0) down_transposed_[lane].set(down_.get(), down, false);
      if (kOrder > 0) up_transposed_[lane].set(up_.get(), up, true);
      if (kOrder != 1) down_taps_[lane].set(down_.get(), down, true);
    }
    const int64_t size = min(p.segment, p.length) + 2 * halo_ + 2 * W;
    x_.allocate(size);
    if (kOrder > 0) dy_.allocate(size);
    if (kOrder == 2) v_.allocate(size);
    for (int lane = 0; lane < 2; ++lane) {
      if (kOrder > 0) g_[lane].allocate(size);
      to_y_[lane].allocate(size);
      if (kOrder == 2) to_dy_[lane].allocate(size);
    }
    if (p.channels_last) elements_.allocate(size);
  }

  void segment(int64_t item) {
    s_ = channel_segment(p_, item);
    from_ = s_.begin - reach_.before;
    to_ = s_.end + reach_.after;
    read(p_.x, true, x_);
    if constexpr (kOrder == 2) read(p_.v, true, v_);
    if constexpr (kOrder > 0) {
      read(p_.dy, false, dy_);
      transpose_down();
    }
    alpha_ = load_scalar(static_cast<const S*>(p_.alpha) + s_.channel);
    const auto of_channel = [&](const void* values) {
      return values == nullptr ? S(0) : load_scalar(static_cast<const S*>(values) + s_.channel);
    };
    beta_ = of_channel(p_.beta);
    w_alpha_ = of_channel(p_.w_alpha);
    w_beta_ = of_channel(p_.w_beta);
    BlockSum<S> sums[2];
    points<false>(from_, s_.begin, sums);
    if (kOrder > 0 && p_.partials != nullptr)
      points<true>(s_.begin, s_.end, sums);
    else
      points<false>(s_.begin, s_.end, sums);
    points<false>(s_.end, to_, sums);
    if (kOrder > 0 && p_.partials != nullptr)
      for (int i = 0; i < (kBeta ? 2 : 1); ++i) p_.partials[s_.partial + i * p_.channels] = sums[i].total();
    if constexpr (kOrder == 0) {
      continue_lanes(to_y_);
      write(down_taps_, to_y_, false, p_.y);
    } else {
      end_lanes(to_y_);
      write(up_transposed_, to_y_, true, p_.y);
    }
    if constexpr (kOrder == 2) {
      continue_lanes(to_dy_);
      write(down_taps_, to_dy_, false, p_.grad_dy);
    }
  }

 private:
  using Lanes = Pair<Scratch<S>>;

  // Position i of a line or lane that begins `halo_` before the segment.
  S* at(const Scratch<S>& line, int64_t i) const { return line.get() + (i - s_.begin + halo_); }

  // The segment's elements and those around it; beyond the ends of the signal the outermost one, or 0.
  void read(const void* signal, bool continued, const Scratch<S>& line) {
    const int64_t begin = s_.begin - halo_, end = s_.end + halo_;
    const int64_t first = max(begin, 0), last = min(end, p_.length);
    const T* from = static_cast<const T*>(signal) + s_.first + first * s_.stride;
    if (p_.channels_last) {
      for (int64_t i = 0; i < last - first; ++i) elements_[i] = from[i * s_.stride];
      from = elements_.get();
    }
    S* to = at(line, first);
    for_vectors<T>(0, last - first, [&](int64_t i, auto whole) {
      const int64_t n = last - first - i;
      store_lanes(to + i, load_lanes(from + i, n, whole), n, whole);
    });
    const S before = continued ? *at(line, first) : S(0), after = continued ? *at(line, last - 1) : S(0);
    for (int64_t i = begin; i < first; ++i) *at(line, i) = before;
    for (int64_t i = last; i < end; ++i) *at(line, i) = after;
  }

  // Both lanes of U (or D') of a line at position i.
  void filter(const Pair<Taps<S>>& taps, const S* line, V (&out)[2]) const {
    if constexpr (kIsTwelve) {  // the lanes share five of six elements
      constexpr LaneTaps even = up_lane(kTwelve, 0), odd = up_lane(kTwelve, 1);
      static_assert(even.first == -3 && odd.first == -2 && even.count == 6 && odd.count == 6);
      static_assert(down_lane(kTwelve, 0).first == -3 && down_lane(kTwelve, 1).first == -2);
      const S *w0 = taps[0].w.get(), *w1 = taps[1].w.get();
      V element = load(line - 3);
      out[0] = w0[0] * element;
      element = load(line - 2);
      out[0] += w0[1] * element;
      out[1] = w1[0] * element;
      unrolled<4>([&](auto n) {
        element = load(line - 1 + n);
        out[0] += w0[2 + n] * element;
        out[1] += w1[1 + n] * element;
      });
      out[1] += w1[5] * load(line + 3);
    } else {
      for (int lane = 0; lane < 2; ++lane) out[lane] = dot(taps[lane], line);
    }
  }
  V dot(const Taps<S>& taps, const S* line) const {
    const int64_t count = kIsTwelve ? 6 : taps.count;
    line += taps.first;
    const S* w = taps.w.get();
    V sum{};
#pragma GCC unroll 6
    for (int64_t n = 0; n < count; ++n) sum += w[n] * load(line + n);
    return sum;
  }

  // g = D' dy, of all lanes that are needed
  void transpose_down() {
    for (int64_t q = from_; q < to_; q += W) {
      V g[2];
      filter(down_transposed_, at(dy_, q), g);
      for (int lane = 0; lane < 2; ++lane) store(at(g_[lane], q), g[lane]);
    }
    const auto dy = [&](int64_t i) { return *at(dy_, i); };
    if (from_ <= 0) *at(g_[0], 0) = first_of_transposed_down<S>(down_, p_.down_taps, dy);
    if (to_ >= p_.length)
      *at(g_[1], p_.length - 1) = last_of_transposed_down<S>(down_, p_.down_taps, p_.length, dy);
  }

  // snake and its derivatives at all lanes of [begin, end). What it writes beyond is written over by the next
  // call, or not read.
  template <bool kSum>
  void points(int64_t begin, int64_t end, BlockSum<S> (&sums)[2]) {
    for (int64_t q = begin; q < end; q += W) {
      V z[2], v[2], terms[2] = {};
      filter(up_taps_, at(x_, q), z);
      if constexpr (kOrder == 2) filter(up_taps_, at(v_, q), v);
      for (int lane = 0; lane < 2; ++lane) {
        V g{};
        if constexpr (kOrder > 0) g = load(at(g_[lane], q));
        const auto results = [&](const auto& point) {
          if constexpr (kOrder == 0) store(at(to_y_[lane], q), point.value());
          if constexpr (kOrder == 1) store(at(to_y_[lane], q), g * slope(point));
        };
        if constexpr (kBeta) {
          const SnakeBetaPoint<V> point(z[lane], alpha_, beta_);
          results(point);
          if constexpr (kOrder == 1 && kSum) {
            terms[0] += g * point.of_alpha();
            terms[1] += g * point.of_beta();
          }
          if constexpr (kOrder == 2) {
            V grad_g, grad_z, grad_alpha, grad_beta;
            point.second_gradients(g, v[lane], w_alpha_, w_beta_, grad_g, grad_z, grad_alpha, grad_beta);
            store(at(to_dy_[lane], q), grad_g);
            store(at(to_y_[lane], q), grad_z);
            if constexpr (kSum) terms[0] += grad_alpha, terms[1] += grad_beta;
          }
        } else {
          const SnakePoint<V> point(z[lane], broadcast<V>(alpha_));
          results(point);
          if constexpr (kOrder == 1 && kSum) terms[0] += g * point.of_alpha();
          if constexpr (kOrder == 2) {
            V grad_g, grad_z, grad_alpha;
            point.second_gradients(g, v[lane], broadcast<V>(w_alpha_), grad_g, grad_z, grad_alpha);
            store(at(to_dy_[lane], q), grad_g);
            store(at(to_y_[lane], q), grad_z);
            if constexpr (kSum) terms[0] += grad_alpha;
          }
        }
      }
      if constexpr (kSum) {
        if (end - q < W)
          for (int64_t i = end - q; i < W; ++i) terms[0][i] = terms[1][i] = 0;
        sums[0].add(terms[0]);
        if constexpr (kBeta) sums[1].add(terms[1]);
      }
    }
  }
  static V slope(const SnakePoint<V>& point) { return point.of_x(); }
  static V slope(const SnakeBetaPoint<V>& point) { return point.of_z(); }

  // Beyond the ends of the signal, lanes that D reads continue it, and lanes that U' reads are 0.
  void continue_lanes(const Lanes& lanes) {
    if (from_ < 0) fill(lanes, from_, 0, *at(lanes[0], 0));
    if (to_ > p_.length) fill(lanes, p_.length, to_, *at(lanes[1], p_.length - 1));
  }
  void end_lanes(const Lanes& lanes) {
    fill(lanes, from_, 0, 0);
    fill(lanes, p_.length, to_, 0);
  }
  void fill(const Lanes& lanes, int64_t begin, int64_t end, S value) {
    for (int lane = 0; lane < 2; ++lane)
      for (int64_t q = begin; q < end; ++q) *at(lanes[lane], q) = value;
  }

  // What the lanes give, by D or, `up`, U'.
  void write(const Pair<Taps<S>>& taps, const Lanes& lanes, bool up, void* signal) {
    T* to = p_.channels_last ? elements_.get() : static_cast<T*>(signal) + s_.first + s_.begin;
    const int64_t length = s_.end - s_.begin;
    for_vectors<T>(0, length, [&](int64_t i, auto whole) {
      const V sum = dot(taps[0], at(lanes[0], s_.begin + i)) + dot(taps[1], at(lanes[1], s_.begin + i));
      store_lanes(to + i, sum, length - i, whole);
    });
    if (up) {
      const auto dz = [&](int64_t j) { return *at(lanes[int(j & 1)], floor_div(j, 2)); };
      const bool first = s_.begin == 0, last = s_.end == p_.length;
      if (p_.length == 1)
        store_scalar(to, only_of_transposed_up<S>(up_, p_.up_taps, dz));
      else {
        if (first) store_scalar(to, first_of_transposed_up<S>(up_, p_.up_taps, dz));
        if (last) store_scalar(to + length - 1, last_of_transposed_up<S>(up_, p_.up_taps, p_.length, dz));
      }
    }
    if (p_.channels_last) {
      T* elements = static_cast<T*>(signal) + s_.first + s_.begin * s_.stride;
      for (int64_t i = 0; i < length; ++i) elements[i * s_.stride] = to[i];
    }
  }

  const FilteredSnakeParams& p_;
  const int64_t halo_;
  const Reach reach_;
  Scratch<S> up_, down_;                                                 // the filters; up_ is 2u
  Pair<Taps<S>> up_taps_, down_transposed_, up_transposed_, down_taps_;  // U, D', U', D
  Scratch<S> x_, dy_, v_;
  Lanes g_, to_y_, to_dy_;
  Scratch<T> elements_;  // of a channel, for channels-last
  ChannelSegment s_{};
  int64_t from_ = 0, to_ = 0;  // the lanes that are needed
  S alpha_ = 0, beta_ = 0, w_alpha_ = 0, w_beta_ = 0;
};

template <int kOrder>
void run(const FilteredSnakeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const auto with_taps = [&]<bool kBeta>() {
      if (p.up_taps == kTwelve && p.down_taps == kTwelve) {
        Segments<T, kOrder, kBeta, true> segments(p);
        for (int64_t item = begin; item < end; ++item) segments.segment(item);
      } else {
        Segments<T, kOrder, kBeta, false> segments(p);
        for (int64_t item = begin; item < end; ++item) segments.segment(item);
      }
    };
    p.beta == nullptr ? with_taps.template operator()<false>() : with_taps.template operator()<true>();
  });
}

}  // namespace

void filtered_snake_forward(const FilteredSnakeParams& p, int64_t begin, int64_t end) {
  run<0>(p, begin, end);
}
void filtered_snake_backward(const FilteredSnakeParams& p, int64_t begin, int64_t end) {
  run<1>(p, begin, end);
}
void filtered_snake_double_backward(const FilteredSnakeParams& p, int64_t begin, int64_t end) {
  run<2>(p, begin, end);
}

void filtered_snake_reduce(const FilteredSnakeParams& p, int64_t begin, int64_t end) {
  const int64_t rows = partial_rows(p), stride = sums_of(p) * p.channels;
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    for (int64_t i = begin; i < end; ++i) {
      store_scalar(static_cast<S*>(p.dalpha) + i, S(sum_of(p.partials + i, rows, stride)));
      if (p.beta != nullptr)
        store_scalar(static_cast<S*>(p.dbeta) + i, S(sum_of(p.partials + p.channels + i, rows, stride)));
    }
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
