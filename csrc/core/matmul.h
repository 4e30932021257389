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

// kRows rows of kVectors vectors of C. `n` of their columns are C's.
template <class T, int kRows, int kVectors>
inline void tile(const Product<T>& p, int64_t row, const T* b, int64_t b_row, int64_t begin, int64_t end,
                 T* c, int64_t n) {
  Vec<T> sums[kRows][kVectors] = {};
  const T* a = p.a + row * p.a_row;
  for (int64_t k = begin; k < end; ++k) {
    Vec<T> right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = load(b + k * b_row + v * kWidth<T>);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const T left = a[r * p.a_row + k * p.a_column];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += left * right[v];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < kVectors; ++v) {
      T* to = c + (row + r) * p.n + v * kWidth<T>;
      const int64_t lanes = n - v * kWidth<T>;
      store_upto(to, begin == 0 && !p.adds ? sums[r][v] : load_upto(to, lanes) + sums[r][v], lanes);
    }
}

// All rows of `kVectors` vectors of columns: of the sums, the part from `begin` to `end`.
template <class T, int kVectors>
void columns(const Product<T>& p, const T* b, int64_t b_row, int64_t begin, int64_t end, T* c, int64_t n) {
  constexpr int kRows = 6;
  int64_t row = 0;
  for (; row + kRows <= p.m; row += kRows) tile<T, kRows, kVectors>(p, row, b, b_row, begin, end, c, n);
  switch (p.m - row) {
    case 5:
      return tile<T, 5, kVectors>(p, row, b, b_row, begin, end, c, n);
    case 4:
      return tile<T, 4, kVectors>(p, row, b, b_row, begin, end, c, n);
    case 3:
      return tile<T, 3, kVectors>(p, row, b, b_row, begin, end, c, n);
    case 2:
      return tile<T, 2, kVectors>(p, row, b, b_row, begin, end, c, n);
    case 1:
      return tile<T, 1, kVectors>(p, row, b, b_row, begin, end, c, n);
    default:
      return;
  }
}

// Elements of the panel that `product_strip` needs, if at all.
inline int64_t panel_size(int64_t k) { return kStrip * min(k, kDepth); }

// The strip with this index.
template <class T>
void product_strip(const Product<T>& p, int64_t strip, T* panel) {
  // As many sums as there are registers, less those for the factors.
  constexpr int kVectors = AIGC_VECTOR_BYTES == 64 ? 4 : 2;
  constexpr int64_t W = kWidth<T>;
  const Range range = part_of(p.n, kStrip, strip);
  const int64_t width = round_up(range.size(), W);
  const bool packed = p.b_by_columns || width != range.size();
  const int64_t b_row = packed ? width : p.b_stride;
  T* c = p.c + range.begin;
  for (int64_t begin = 0; begin < max(p.k, 1); begin += kDepth) {
    const int64_t end = min(begin + kDepth, p.k);
    if (packed) pack(p, range.begin, range.size(), width, {begin, end}, panel);
    const T* b = packed ? panel - begin * width : p.b + range.begin;
    int64_t at = 0;
    for (; at + kVectors * W <= width; at += kVectors * W)
      columns<T, kVectors>(p, b + at, b_row, begin, end, c + at, range.size() - at);
    for (; at < width; at += W) columns<T, 1>(p, b + at, b_row, begin, end, c + at, range.size() - at);
  }
}

}  // namespace AIGC_ISA
}  // namespace aigc
