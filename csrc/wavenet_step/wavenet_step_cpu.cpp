// Sequences go through a layer together, in groups of as many rows as there are registers for, so that its
// weights come from the second-level cache once for all of them. With one sequence, reading the weights is what
// takes the time.
#include "core/scratch.h"
#include "core/simd.h"
#include "wavenet_step/wavenet_step_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int kRows = 6;        // of a product, summed together
constexpr int64_t kBlock = 24;  // sequences that share a turn through the layers
constexpr int kRegisters = AIGC_VECTOR_BYTES == 64 ? 24 : 12;  // for sums; the others are for the factors
constexpr int most_vectors(int rows) {
  const int most = kRegisters / rows;
  return most > 8 ? 8 : most;
}

// out = start + in w, for some sequences; in, of `depth` numbers for each tap.
template <class T>
struct Product {
  int64_t taps = 1, depth = 0, columns = 0;
  const T* w = nullptr;  // taps, depth, row
  int64_t row = 0;       // the distance of its rows, of which the first `columns` numbers count

  // Of kRows sequences, kVectors vectors of outputs from `column` on, of which n count.
  template <int kRows_, int kVectors, class Whole>
  void tile(const T* const* in, const T* const* start, T* const* out, int64_t column, int64_t n,
            Whole whole) const {
    constexpr int W = kWidth<T>;
    Vec<T> sums[kRows_][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows_; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = load_lanes(start[r] + column + v * W, n, whole);
    const T* weights = w + column;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const T* a[kRows_];
      for (int r = 0; r < kRows_; ++r) a[r] = in[r * taps + tap];
      for (int64_t i = 0; i < depth; ++i, weights += row) {
        Vec<T> right[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) right[v] = load_lanes(weights + v * W, n, whole);
#pragma GCC unroll 8
        for (int r = 0; r < kRows_; ++r) {
          const T left = a[r][i];
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) sums[r][v] += left * right[v];
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows_; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) store_lanes(out[r] + column + v * W, sums[r][v], n, whole);
  }

  // Calls tile() with as many vectors as there are left, or as fit.
  template <int kRows_, int kVectors>
  void vectors(const T* const* in, const T* const* start, T* const* out, int64_t& column) const {
    for (; column + kVectors * kWidth<T> <= columns; column += kVectors * kWidth<T>)
      tile<kRows_, kVectors>(in, start, out, column, kVectors * kWidth<T>, std::true_type());
    if constexpr (kVectors > 1) vectors<kRows_, kVectors - 1>(in, start, out, column);
  }

  template <int kRows_>
  void group(const T* const* in, const T* const* start, T* const* out) const {
    int64_t column = 0;
    vectors<kRows_, most_vectors(kRows_)>(in, start, out, column);
    if (column < columns) tile<kRows_, 1>(in, start, out, column, columns - column, std::false_type());
  }

  void run(int64_t rows, const T* const* in, const T* const* start, T* const* out) const {
    int64_t at = 0;
    for (; at + kRows <= rows; at += kRows) group<kRows>(in + at * taps, start + at, out + at);
    in += at * taps, start += at, out += at;
    switch (rows - at) {
      case 5:
        return group<5>(in, start, out);
      case 4:
        return group<4>(in, start, out);
      case 3:
        return group<3>(in, start, out);
      case 2:
        return group<2>(in, start, out);
      case 1:
        return group<1>(in, start, out);
      default:
        return;
    }
  }
};

// Some sequences, through all steps.
template <class T>
class Sequences {
 public:
  Sequences(const WaveNetParams& p, Range range)
      : p_(p),
        rows_(range.size()),
        first_(range.begin),
        width_(round_up(wavenet_numbers(p) + 7 * kPad, kPad)),
        numbers_(rows_ * width_),
        taps_(rows_ * max(p.taps, 1)),
        start_(rows_),
        out_(rows_) {
    int64_t at = 0;
    const int64_t sizes[] = {p.channels,           p.skips,  2 * p.gates, p.gates,
                             p.channels + p.skips, p.hidden, p.classes};
    for (int i = 0; i < 7; ++i) {
      offsets_[i] = at;
      at = round_up(at + sizes[i], kPad);
    }
  }

  void run() {
    for (int64_t step = 0; step < p_.steps; ++step) {
      begin();
      int64_t queue = 0;
      for (int64_t l = 0; l < p_.layers; ++l) {
        layer(l, queue);
        queue += (p_.taps - 1) * p_.dilations[l];
      }
      end(step);
    }
  }

 private:
  static constexpr int64_t kPad = 64 / int64_t(sizeof(T));  // numbers of a cache line
  enum Part { kX, kSkip, kZ, kH, kY, kHidden, kLogits };

  T* of(Part part, int64_t r) const { return &numbers_[r * width_ + offsets_[part]]; }
  const T* at(const void* pointer, int64_t i) const { return static_cast<const T*>(pointer) + i; }
  int64_t time(int64_t r) const { return p_.times[first_ + r]; }

  void begin() {
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t code = p_.codes[first_ + r];
      T *x = of(kX, r), *skip = of(kSkip, r);
      if (code >= 0 && code < p_.classes)
        std::memcpy(x, at(p_.embedding, code * p_.channels), size_t(p_.channels) * sizeof(T));
      else
        for (int64_t i = 0; i < p_.channels; ++i) x[i] = T(__builtin_nan(""));
      std::memset(skip, 0, size_t(p_.skips) * sizeof(T));
    }
  }

  void layer(int64_t l, int64_t queue) {
    const int64_t length = (p_.taps - 1) * p_.dilations[l];
    for (int64_t r = 0; r < rows_; ++r) {
      T* ring = static_cast<T*>(p_.queues) + ((first_ + r) * p_.queue_rows + queue) * p_.channels;
      taps_[r * p_.taps] = of(kX, r);
      for (int64_t j = 1; j < p_.taps; ++j)
        taps_[r * p_.taps + j] = ring + ring_place(time(r), j * p_.dilations[l], length) * p_.channels;
      const int64_t frame = (first_ + r) * p_.frames + frame_of(p_, time(r));
      start_[r] = at(p_.condition, (frame * p_.layers + l) * 2 * p_.gates);
      out_[r] = of(kZ, r);
    }
    const int64_t gate_size = p_.channels * 2 * p_.gates;
    product(p_.w_gate, l * p_.taps * gate_size, p_.taps, p_.channels, 2 * p_.gates, 2 * p_.gates);
    const bool last = l == p_.layers - 1;
    const int64_t outputs = p_.channels + p_.skips, unused = last ? p_.channels : 0;
    for (int64_t r = 0; r < rows_; ++r) {
      if (length > 0) {
        T* ring = static_cast<T*>(p_.queues) + ((first_ + r) * p_.queue_rows + queue) * p_.channels;
        std::memcpy(ring + ring_place(time(r), 0, length) * p_.channels, of(kX, r),
                    size_t(p_.channels) * sizeof(T));
      }
      const T* z = of(kZ, r);
      T* h = of(kH, r);
      for_vectors<T>(0, p_.gates, [&](int64_t i, auto whole) {
        const int64_t n = p_.gates - i;
        store_lanes(h + i,
                    tanh(load_lanes(z + i, n, whole)) * sigmoid(load_lanes(z + p_.gates + i, n, whole)), n,
                    whole);
      });
      taps_[r] = h;
      start_[r] = at(p_.b_out, l * outputs + unused);
      out_[r] = of(kY, r) + unused;
    }
    product(p_.w_out, l * p_.gates * outputs + unused, 1, p_.gates, outputs - unused, outputs);
    for (int64_t r = 0; r < rows_; ++r) {
      const T* y = of(kY, r);
      if (!last) add(of(kX, r), y, p_.channels);
      add(of(kSkip, r), y + p_.channels, p_.skips);
    }
  }

  // The products of what taps_ points to, from start_ on into out_.
  void product(const void* w, int64_t offset, int64_t taps, int64_t depth, int64_t columns,
               int64_t row) const {
    Product<T>{taps, depth, columns, at(w, offset), row}.run(rows_, taps_.get(), start_.get(), out_.get());
  }

  static void add(T* to, const T* from, int64_t count) {
    for_vectors<T>(0, count, [&](int64_t i, auto whole) {
      store_lanes(to + i, load_lanes(to + i, count - i, whole) + load_lanes(from + i, count - i, whole),
                  count - i, whole);
    });
  }

  // relu of `from`, times w, into `to`.
  void dense(Part from, int64_t depth, Part to, int64_t columns, const void* w, const void* b) {
    for (int64_t r = 0; r < rows_; ++r) {
      T* x = of(from, r);
      for (int64_t i = 0; i < depth; ++i) x[i] = x[i] < 0 ? T(0) : x[i];  // a NaN stays
      taps_[r] = x;
      start_[r] = at(b, 0);
      out_[r] = of(to, r);
    }
    product(w, 0, 1, depth, columns, columns);
  }

  void end(int64_t step) {
    if (p_.given == nullptr || p_.keep_logits) {
      dense(kSkip, p_.skips, kHidden, p_.hidden, p_.w_hidden, p_.b_hidden);
      dense(kHidden, p_.hidden, kLogits, p_.classes, p_.w_logits, p_.b_logits);
    }
    for (int64_t r = 0; r < rows_; ++r) {
      const int64_t place = (first_ + r) * p_.steps + step;
      if (p_.keep_logits)
        std::memcpy(static_cast<T*>(p_.logits) + place * p_.classes, of(kLogits, r),
                    size_t(p_.classes) * sizeof(T));
      const int64_t code = p_.given ? p_.given[place] : draw(of(kLogits, r), place);
      p_.samples[place] = p_.codes[first_ + r] = code;
      p_.times[first_ + r] = next_time(time(r));
    }
  }

  int64_t draw(T* logits, int64_t place) const {
    const T temperature = T(p_.temperature);
    if (temperature == 0) return most_likely_code(logits, p_.classes);
    Vec<T> tops = broadcast<Vec<T>>(-T(INFINITY));
    for_vectors<T>(0, p_.classes, [&](int64_t i, auto whole) {
      const int64_t n = p_.classes - i;
      const Vec<T> x = load_lanes(logits + i, n, whole);
      if constexpr (decltype(whole)::value) {
        tops = max(x, tops);
      } else {
        for (int64_t j = 0; j < n; ++j) tops[j] = max(logits[i + j], tops[j]);
      }
    });
    T top = -T(INFINITY);
    for (int i = 0; i < kWidth<T>; ++i) top = max(T(tops[i]), top);
    for_vectors<T>(0, p_.classes, [&](int64_t i, auto whole) {
      const int64_t n = p_.classes - i;
      store_lanes(logits + i, exp((load_lanes(logits + i, n, whole) - top) / temperature), n, whole);
    });
    return drawn_code(logits, p_.classes, double(*at(p_.uniform, place)));
  }

  const WaveNetParams& p_;
  int64_t rows_, first_, width_;
  int64_t offsets_[7];
  Scratch<T> numbers_;
  Scratch<const T*> taps_, start_;
  Scratch<T*> out_;
};

}  // namespace

void wavenet_step(const WaveNetParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class T>(T*) {
    for (int64_t at = begin; at < end; at += kBlock) Sequences<T>(p, {at, min(at + kBlock, end)}).run();
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
