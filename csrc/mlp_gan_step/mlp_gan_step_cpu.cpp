#include "mlp_gan_step/mlp_gan_step.h"

#include "core/matmul.h"
#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// f' and f'' with the gain. The activations take the branch at 0 as core/activation.h does.
template <Act A, class S, class V>
inline V slope(const ClampedActivation<A, S>& act, V z) {
  return act.gradient(z, broadcast<V>(1));
}

template <class T, Act A>
void forward(const MlpForwardParams& p, int64_t begin, int64_t end) {
  const ClampedActivation<A, T> act(p);
  const auto* b = static_cast<const T*>(p.b);
  const Range rows{begin * p.chunk, min(end * p.chunk, p.rows)};
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    T* h = static_cast<T*>(p.h) + row * p.columns;
    T* d = p.d ? static_cast<T*>(p.d) + row * p.columns : nullptr;
    T* d2 = p.d2 && row < p.second_rows ? static_cast<T*>(p.d2) + row * p.columns : nullptr;
    for_vectors<T>(0, p.columns, [&](int64_t i, auto whole) {
      const int64_t n = p.columns - i;
      const Vec<T> z = load_lanes(h + i, n, whole) + load_lanes(b + i, n, whole);
      store_lanes(h + i, act.value(z), n, whole);
      if (d) store_lanes(d + i, slope(act, z), n, whole);
      if constexpr (!is_piecewise_linear(A))
        if (d2) store_lanes(d2 + i, act.gain * activation_second_derivative<A>(z), n, whole);
    });
  }
}

// Columns [begin, end), a vector of which is summed over the rows at a time; several, or the latency of the
// additions would set the pace.
template <class T, int kVectors, class Whole>
void backward_columns(const MlpBackwardParams& p, int64_t column, int64_t n, Whole whole) {
  const auto* dh = static_cast<const T*>(p.dh) + column;
  const auto* d = static_cast<const T*>(p.d);
  const auto* add = static_cast<const T*>(p.add);
  auto* dz = static_cast<T*>(p.dz) + column;
  if (d) d += column;
  if (add) add += column;
  const T gain = T(p.gain);
  double totals[kVectors * kWidth<T>] = {};
  for (int64_t block = 0; block < p.rows; block += kSumBlock) {
    Vec<T> sums[kVectors] = {};
    const int64_t block_end = min(block + kSumBlock, p.rows);
    for (int64_t row = block; row < block_end; ++row)
      for (int j = 0; j < kVectors; ++j) {
        const int64_t at = row * p.columns + j * kWidth<T>;
        Vec<T> g = load_lanes(dh + at, n, whole);
        g = d ? g * load_lanes(d + at, n, whole) : g * gain;
        if (add && row < p.added) g += load_lanes(add + at, n, whole);
        store_lanes(dz + at, g, n, whole);
        sums[j] += g;
      }
    for (int j = 0; j < kVectors; ++j)
      for (int lane = 0; lane < kWidth<T>; ++lane) totals[j * kWidth<T> + lane] += double(sums[j][lane]);
  }
  if (!p.db) return;
  auto* db = static_cast<T*>(p.db) + column;
  const int64_t count = min(int64_t(kVectors) * kWidth<T>, n);
  for (int64_t i = 0; i < count; ++i) db[i] = T(totals[i]);
}

template <class T>
void backward(const MlpBackwardParams& p, int64_t begin, int64_t end) {
  constexpr int kVectors = 4;
  int64_t column = begin * p.chunk;
  const int64_t last = min(end * p.chunk, p.columns);
  for (; column + kVectors * kWidth<T> <= last; column += kVectors * kWidth<T>)
    backward_columns<T, kVectors>(p, column, kVectors * kWidth<T>, std::true_type());
  for (; column + kWidth<T> <= last; column += kWidth<T>)
    backward_columns<T, 1>(p, column, kWidth<T>, std::true_type());
  if (column < last) backward_columns<T, 1>(p, column, last - column, std::false_type());
}

template <class T>
void second(const MlpSecondParams& p, int64_t begin, int64_t end) {
  const auto* d = static_cast<const T*>(p.d);
  const auto* d2 = static_cast<const T*>(p.d2);
  const auto* eh = static_cast<const T*>(p.eh);
  auto* v = static_cast<T*>(p.v);
  auto* s = static_cast<T*>(p.s);
  const T gain = T(p.gain);
  const int64_t last = min(end * p.chunk, p.count);
  for_vectors<T>(begin * p.chunk, last, [&](int64_t i, auto whole) {
    const int64_t n = last - i;
    const Vec<T> c = load_lanes(v + i, n, whole);
    if (d2) {
      const Vec<T> curvature = load_lanes(eh + i, n, whole) * load_lanes(d2 + i, n, whole);
      store_lanes(s + i, c * curvature, n, whole);
    }
    store_lanes(v + i, d ? c * load_lanes(d + i, n, whole) : c * gain, n, whole);
  });
}

}  // namespace

void mlp_product(const MlpProductParams& p, int64_t begin, int64_t end) {
  static_assert(MlpProductParams::kStrip == kStrip);
  dispatch_acc(p.dtype, [&]<class T>(T*) {
    const int64_t strips = ceil_div(p.n, kStrip);
    for (int64_t item = begin, next; item < end; item = next) {
      const int64_t strip = item % strips;
      next = min(item - strip + strips, end);
      const Range rows = part_of(p.m, p.block, item / strips);
      Product<T> product;
      product.m = rows.size();
      product.n = p.n;
      product.k = p.k;
      product.a_row = p.a_transposed ? 1 : p.k;
      product.a_column = p.a_transposed ? p.m : 1;
      product.a = static_cast<const T*>(p.a) + rows.begin * product.a_row;
      product.b = static_cast<const T*>(p.b);
      product.b_stride = p.b_transposed ? p.k : p.n;
      product.b_by_columns = p.b_transposed;
      product.c = static_cast<T*>(p.c) + rows.begin * p.n;
      product.adds = p.adds;
      product_strips(product, {strip, strip + next - item});
    }
  });
}

void mlp_forward(const MlpForwardParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) { forward<T, A>(p, begin, end); });
  });
}

void mlp_backward(const MlpBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class T>(T*) { backward<T>(p, begin, end); });
}

void mlp_second(const MlpSecondParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class T>(T*) { second<T>(p, begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
