#include "gated_act/gated_act.h"

#include <memory>

#include "core/math.h"
#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

template <class T>
struct Unit {
  int64_t y;        // offset in y of the unit's first element
  int64_t x1, x2;   // and in x
  int64_t channel;  // of a plane
};

template <class T>
class Units {
 public:
  explicit Units(const GatedActParams& p)
      : p_(p), x_(static_cast<const T*>(p.x)), b_(static_cast<const T*>(p.b)) {}

  Unit<T> operator[](int64_t index) const {
    const int64_t length = unit_length(p_);
    if (bias_runs_along(p_)) return {index * length, 2 * index * length, 2 * index * length + length, 0};
    const int64_t n = index / p_.channels;
    const int64_t x1 = (index + n * p_.channels) * length;
    return {index * length, x1, x1 + p_.channels * length, index % p_.channels};
  }

  // tanh(z1) and sigmoid(z2) of n elements from i on
  void gates(const Unit<T>& unit, int64_t i, int64_t n, Vec<T>& t, Vec<T>& s) const {
    Vec<T> z1 = load_upto(x_ + unit.x1 + i, n), z2 = load_upto(x_ + unit.x2 + i, n);
    if (b_ && bias_runs_along(p_)) {
      z1 += load_upto(b_ + i, n);
      z2 += load_upto(b_ + p_.channels + i, n);
    } else if (b_) {
      z1 += load_scalar(b_ + unit.channel);
      z2 += load_scalar(b_ + p_.channels + unit.channel);
    }
    t = tanh(z1);
    s = sigmoid(z2);
  }

 private:
  const GatedActParams& p_;
  const T* x_;
  const T* b_;
};

template <class F>
inline void for_units(const GatedActParams& p, int64_t chunk, F&& f) {
  const Range units = part_of(unit_count(p), p.units_per_chunk, chunk);
  for (int64_t unit = units.begin; unit < units.end; ++unit) f(unit);
}

template <class T>
void forward(const GatedActParams& p, int64_t begin, int64_t end) {
  auto* y = static_cast<T*>(p.y);
  const int64_t length = unit_length(p);
  const Units<T> units(p);
  for (int64_t chunk = begin; chunk < end; ++chunk)
    for_units(p, chunk, [&](int64_t index) {
      const Unit<T> unit = units[index];
      for (int64_t i = 0; i < length; i += kWidth<T>) {
        Vec<T> t, s;
        units.gates(unit, i, length - i, t, s);
        store_upto(y + unit.y + i, t * s, length - i);
      }
    });
}

template <class T>
void backward(const GatedActParams& p, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dx = static_cast<T*>(p.dx);
  const int64_t length = unit_length(p);
  const bool along = bias_runs_along(p);
  const Units<T> units(p);
  const std::unique_ptr<S[]> columns(p.partials && along ? new S[2 * length] : nullptr);

  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double* totals = columns ? p.partials + chunk * 2 * length : nullptr;
    for (int64_t i = 0; columns && i < 2 * length; ++i) columns[i] = 0, totals[i] = 0;
    int added = 0;
    const auto flush = [&] {
      for (int64_t i = 0; i < 2 * length; ++i) totals[i] += columns[i], columns[i] = 0;
      added = 0;
    };
    for_units(p, chunk, [&](int64_t index) {
      const Unit<T> unit = units[index];
      BlockSum<T> sum1, sum2;
      for (int64_t i = 0; i < length; i += kWidth<T>) {
        const int64_t n = length - i;
        Vec<T> t, s;
        units.gates(unit, i, n, t, s);
        const Vec<T> g = load_upto(dy + unit.y + i, n);
        const Vec<T> d1 = g * s * (S(1) - t * t), d2 = g * t * (s * (S(1) - s));
        store_upto(dx + unit.x1 + i, d1, n);
        store_upto(dx + unit.x2 + i, d2, n);
        if (columns) {
          store_upto(columns.get() + i, load_upto(columns.get() + i, n) + d1, n);
          store_upto(columns.get() + length + i, load_upto(columns.get() + length + i, n) + d2, n);
        } else if (p.partials) {
          sum1.add(d1);
          sum2.add(d2);
        }
      }
      if (columns) {
        if (++added == kSumBlock) flush();
      } else if (p.partials) {
        double* row = p.partials + index / p.channels * 2 * p.channels;
        row[unit.channel] = sum1.total();
        row[p.channels + unit.channel] = sum2.total();
      }
    });
    if (columns) flush();
  }
}

}  // namespace

void gated_act_forward(const GatedActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { forward<T>(p, begin, end); });
}

void gated_act_backward(const GatedActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { backward<T>(p, begin, end); });
}

void gated_act_reduce(const GatedActParams& p, int64_t begin, int64_t end) {
  const int64_t rows = partial_rows(p), width = 2 * p.channels;
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t i = begin; i < end; ++i) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row) total += p.partials[row * width + i];
      store_scalar(static_cast<T*>(p.db) + i, acc_t<T>(total));
    }
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
