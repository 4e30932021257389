// Products of small matrices, whose results depend on nothing but the factors: not on the number of threads,
// nor on where in memory they lie.
//
//     C(i, j) = sum over k of A(i, k) B(k, j)
//
// A tile of C, as large as the registers hold, is summed at a time: each element in the order of k, in T, over
// blocks of kDepth that are then added up. B is read row by row. Where it is given by columns, and at an edge
// that is no whole vector, a block of a strip of it is copied into such rows first, and read while the caches
// have it.
#pragma once

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

constexpr int64_t kStrip = 64;  // columns of C that are computed together
// Additions in a row. Where a product is rounded too before it is added, fewer keep the error down; where it is
// not, as many as give a block of B that fits into 32 KB of cache.
#if defined(__FMA__)
constexpr int64_t kDepth = 128;
#else
constexpr int64_t kDepth = kSumBlock;
#endif

template <class T>
struct Product {
  int64_t m = 0, n = 0, k = 0;
  const T* a = nullptr;
  int64_t a_row = 0, a_column = 0;  // strides
  const T* b = nullptr;
  int64_t b_stride = 0;       // of its rows, or of its columns
  bool b_by_columns = false;  // B(k, j) = b[j * b_stride + k], else b[k * b_stride + j]
  T* c = nullptr;             // dense
  bool adds = false;          // to what is in C
};

// Copies `columns` columns of B from j on, of these rows of it, into rows of `width` elements, the rest of which
// are zeros.
template <class T>
void pack(const Product<T>& p, int64_t j, int64_t columns, int64_t width, Range rows, T* panel) {
  constexpr int64_t W = kWidth<T>;
  panel -= rows.begin * width;
  if (!p.b_by_columns) {
    for (int64_t k = rows.begin; k < rows.end; ++k)
      for (int64_t i = 0; i < width; i += W)
        store(panel + k * width + i, load_upto(p.b + k * p.b_stride + j + i, columns - i));
    return;
  }
  for (int64_t first = 0; first < width; first += W) {
    const T* source = p.b + (j + first) * p.b_stride;
    const int64_t count = min(columns - first, W);
    int64_t k = rows.begin;
    if (count == W)
      for (; k + W <= rows.end; k += W) {
        Vec<T> block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) block[i] = load(source + i * p.b_stride + k);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(panel + (k + i) * width + first, block[i]);
      }
    for (; k < rows.end; ++k)
      for (int64_t i = 0; i < W; ++i)
        panel[k * width + first + i] = i < count ? source[i * p.b_stride + k] : T(0);
  }
}

// kRows rows of kVectors vectors of C, whose last vector has `n` columns, or all, as `whole` says. All is unrolled, the
// end too: sums that wait in memory for a loop cost as much as the products of a dozen rows of B.
template <int kRows, int kVectors, bool kAdds, class T, class Whole = std::true_type>
inline void tile(const T* a, int64_t a_row, int64_t a_column, const T* b, int64_t b_row, int64_t depth, T* c,
                 int64_t c_row, int64_t n = kWidth<T>, Whole whole = {}) {
  Vec<T> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) sums[r][v] = Vec<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + k * b_row + v * kWidth<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T left = a[r * a_row + k * a_column];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + r * c_row + v * kWidth<T>;
      if (v + 1 < kVectors)
        store(to, kAdds ? load(to) + sums[r][v] : sums[r][v]);
      else
        store_lanes(to, kAdds ? load_lanes(to, n, whole) + sums[r][v] : sums[r][v], n, whole);
    }
}

// All rows of `kVectors` vectors of columns: of the sums, the part of this depth.
template <class T, int kVectors>
void columns(const Product<T>& p, const T* b, int64_t b_row, Range depth, T* c, int64_t n) {
  constexpr int kRows = 6;
  const auto all_rows = [&](auto adds, int64_t of_last, auto whole) {
    const auto rows = [&]<int count>(int64_t row, std::integral_constant<int, count>) {
      tile<count, kVectors, decltype(adds)::value>(p.a + row * p.a_row + depth.begin * p.a_column, p.a_row,
                                                   p.a_column, b + depth.begin * b_row, b_row, depth.size(),
                                                   c + row * p.n, p.n, of_last, whole);
    };
    int64_t row = 0;
    for (; row + kRows <= p.m; row += kRows) rows(row, std::integral_constant<int, kRows>());
    unrolled<kRows - 1>([&](auto i) {
      if (p.m - row == i + 1) rows(row, std::integral_constant<int, i + 1>());
    });
  };
  const auto part = [&](auto adds) {
    const int64_t of_last = n - (kVectors - 1) * kWidth<T>;
    if (of_last >= kWidth<T>)
      all_rows(adds, kWidth<T>, std::true_type());
    else
      all_rows(adds, of_last, std::false_type());
  };
  if (depth.begin > 0 || p.adds)
    part(std::true_type());
  else
    part(std::false_type());
}

// The columns of a strip. A last strip of a single vector, whose few sums wait for each other, takes one more
// from the strip before.
template <class T>
Range strip_of(int64_t n, int64_t strip) {
  Range range = part_of(n, kStrip, strip);
  const int64_t last = (n - 1) / kStrip * kStrip;
  if (last > 0 && n - last <= kWidth<T>) {
    if (range.begin == last) range.begin -= kWidth<T>;
    if (range.end == last) range.end -= kWidth<T>;
  }
  return range;
}

// The strips with these indices. A block of depth of all of them goes before the next, so that B is read in
// the order of memory.
template <class T>
void product_strips(const Product<T>& p, Range strips) {
  constexpr int64_t W = kWidth<T>;
  // As many sums as there are registers, less those for the factors.
  constexpr int kVectors = AIGC_VECTOR_BYTES == 64 ? 4 : 2;
  alignas(64) T panel[kStrip * kDepth];
  for (int64_t begin = 0; begin < max(p.k, 1); begin += kDepth) {
    const Range depth{begin, min(begin + kDepth, p.k)};
    for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
      const Range range = strip_of<T>(p.n, strip);
      const int64_t width = round_up(range.size(), W);
      const bool packed = p.b_by_columns || width != range.size();
      if (packed) pack(p, range.begin, range.size(), width, depth, panel);
      const int64_t b_row = packed ? width : p.b_stride;
      const T* b = packed ? panel - begin * width : p.b + range.begin;
      T* c = p.c + range.begin;
      int64_t at = 0;
      for (; at + kVectors * W <= width; at += kVectors * W)
        columns<T, kVectors>(p, b + at, b_row, depth, c + at, range.size() - at);
      unrolled<kVectors - 1>([&](auto i) {
        if (width - at == (i + 1) * W) columns<T, i + 1>(p, b + at, b_row, depth, c + at, range.size() - at);
      });
    }
  }
}

}  // namespace AIGC_ISA
}  // namespace aigc
