#include "core/reduce.h"
#include "snake/snake.h"
#include "snake/snake_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// One vector of elements: from `at` on, with their alpha and w. Stores the results of the order of
// differentiation, and returns the terms of the gradient of alpha.
template <class T, int kOrder, class Whole>
inline Vec<T> apply(const SnakeParams& p, int64_t at, int64_t n, Whole whole, Vec<T> alpha, Vec<T> w) {
  const auto at_of = [&](const void* pointer) {
    return load_lanes(static_cast<const T*>(pointer) + at, n, whole);
  };
  auto* y = static_cast<T*>(p.y) + at;
  const SnakePoint<Vec<T>> point(at_of(p.x), alpha);
  if constexpr (kOrder == 0) {
    store_lanes(y, point.value(), n, whole);
    return Vec<T>{};
  } else if constexpr (kOrder == 1) {
    const Vec<T> dy = at_of(p.dy);
    store_lanes(y, dy * point.of_x(), n, whole);
    return dy * point.of_alpha();
  } else {
    Vec<T> grad_dy, grad_x, grad_alpha;
    point.second_gradients(at_of(p.dy), at_of(p.v), w, grad_dy, grad_x, grad_alpha);
    store_lanes(static_cast<T*>(p.grad_dy) + at, grad_dy, n, whole);
    store_lanes(y, grad_x, n, whole);
    return grad_alpha;
  }
}

template <class T, int kOrder>
void pixels(const SnakeParams& p, int64_t chunk, Range units, ColumnSums<T>& columns) {
  const auto *alpha = static_cast<const T*>(p.alpha), *w = static_cast<const T*>(p.w);
  const bool sum = kOrder > 0 && p.partials;
  if (sum) columns.begin(p.partials + chunk * p.channels);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    for_vectors<T>(0, p.channels, [&](int64_t i, auto whole) {
      const int64_t n = p.channels - i;
      const Vec<T> w_here = w ? load_lanes(w + i, n, whole) : Vec<T>{};
      const Vec<T> terms =
          apply<T, kOrder>(p, unit * p.channels + i, n, whole, load_lanes(alpha + i, n, whole), w_here);
      if (sum) columns.update(i, [&](Vec<T>(&column)[1]) { column[0] += terms; });
    });
    if (sum) columns.end_row();
  }
  if (sum) columns.end_block();
}

template <class T, int kOrder>
void planes(const SnakeParams& p, Range units) {
  const auto *alpha = static_cast<const T*>(p.alpha), *w = static_cast<const T*>(p.w);
  for (int64_t unit = units.begin; unit < units.end; ++unit) {
    const SnakeSegment segment = snake_segment(p, unit);
    const auto alpha_here = broadcast<Vec<T>>(load_scalar(alpha + segment.channel));
    const auto w_here = broadcast<Vec<T>>(w ? load_scalar(w + segment.channel) : acc_t<T>(0));
    BlockSum<T> sum;
    for_vectors<T>(0, segment.length, [&](int64_t i, auto whole) {
      const int64_t n = segment.length - i;
      Vec<T> terms = apply<T, kOrder>(p, segment.begin + i, n, whole, alpha_here, w_here);
      if constexpr (kOrder > 0) {
        if constexpr (!whole)  // with an infinite alpha, they are NaN where there is no element
          for (int j = int(n); j < kWidth<T>; ++j) terms[j] = 0;
        sum.add(terms);
      }
    });
    if (kOrder > 0 && p.partials) p.partials[segment.partial] = sum.total();
  }
}

template <int kOrder>
void run(const SnakeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    ColumnSums<T> columns(p.partials && alpha_runs_along(p) ? p.channels : 0);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Range units = part_of(unit_count(p), p.units_per_chunk, chunk);
      alpha_runs_along(p) ? pixels<T, kOrder>(p, chunk, units, columns) : planes<T, kOrder>(p, units);
    }
  });
}

}  // namespace

void snake_forward(const SnakeParams& p, int64_t begin, int64_t end) { run<0>(p, begin, end); }
void snake_backward(const SnakeParams& p, int64_t begin, int64_t end) { run<1>(p, begin, end); }
void snake_double_backward(const SnakeParams& p, int64_t begin, int64_t end) { run<2>(p, begin, end); }

void snake_reduce(const SnakeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t i = begin; i < end; ++i)
      store_scalar(static_cast<T*>(p.dalpha) + i,
                   acc_t<T>(sum_of(p.partials + i, partial_rows(p), p.channels)));
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
