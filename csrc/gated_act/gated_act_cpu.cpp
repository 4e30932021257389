#include "core/reduce.h"
#include "gated_act/gated_act.h"
#include "gated_act/gated_act_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

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

  Unit operator[](int64_t index) const {
    const int64_t length = unit_length(p_);
    if (bias_runs_along(p_)) return {index * length, 2 * index * length, 2 * index * length + length, 0};
    const int64_t n = index / p_.channels;
    const int64_t x1 = (index + n * p_.channels) * length;
    return {index * length, x1, x1 + p_.channels * length, index % p_.channels};
  }

  template <class Whole>
  Gates<Vec<T>> gates(const Unit& unit, int64_t i, int64_t n, Whole whole) const {
    Vec<T> z1 = load_lanes(x_ + unit.x1 + i, n, whole), z2 = load_lanes(x_ + unit.x2 + i, n, whole);
    if (b_ && bias_runs_along(p_)) {
      z1 += load_lanes(b_ + i, n, whole);
      z2 += load_lanes(b_ + p_.channels + i, n, whole);
    } else if (b_) {
      z1 += load_scalar(b_ + unit.channel);
      z2 += load_scalar(b_ + p_.channels + unit.channel);
    }
    return {z1, z2};
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
      const Unit unit = units[index];
      for_vectors<T>(0, length, [&](int64_t i, auto whole) {
        store_lanes(y + unit.y + i, units.gates(unit, i, length - i, whole).value(), length - i, whole);
      });
    });
}

template <class T>
void backward(const GatedActParams& p, int64_t begin, int64_t end) {
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dx = static_cast<T*>(p.dx);
  const int64_t length = unit_length(p);
  const bool by_column = p.partials && bias_runs_along(p), by_unit = p.partials && !by_column;
  const Units<T> units(p);
  ColumnSums<T, 2> columns(by_column ? length : 0);

  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (by_column) columns.begin(p.partials + chunk * 2 * length);
    for_units(p, chunk, [&](int64_t index) {
      const Unit unit = units[index];
      BlockSum<T> sum1, sum2;
      for_vectors<T>(0, length, [&](int64_t i, auto whole) {
        const int64_t n = length - i;
        Vec<T> dz1, dz2;
        units.gates(unit, i, n, whole).gradients(load_lanes(dy + unit.y + i, n, whole), dz1, dz2);
        store_lanes(dx + unit.x1 + i, dz1, n, whole);
        store_lanes(dx + unit.x2 + i, dz2, n, whole);
        if (by_column) {
          columns.update(i, [&](Vec<T>(&column)[2]) {
            column[0] += dz1;
            column[1] += dz2;
          });
        } else if (by_unit) {
          sum1.add(dz1);
          sum2.add(dz2);
        }
      });
      if (by_column) columns.end_row();
      if (by_unit) {
        double* row = p.partials + index / p.channels * 2 * p.channels;
        row[unit.channel] = sum1.total();
        row[p.channels + unit.channel] = sum2.total();
      }
    });
    if (by_column) columns.end_block();
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
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t i = begin; i < end; ++i)
      store_scalar(static_cast<T*>(p.db) + i,
                   acc_t<T>(sum_of(p.partials + i, partial_rows(p), 2 * p.channels)));
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
