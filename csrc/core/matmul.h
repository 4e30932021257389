// Products of small matrices, whose results depend on nothing but the factors: not on the number of threads,
// nor on where in memory they lie.
//
//     C(i, j) = sum over k of A(i, k) B(k, j)
//
// A tile of C, as large as the registers hold, is summed at a time: each element in the order of k, in T, over
// blocks of kDepth that are then added up. B is read row by row. Where it is given by columns, and at an edge
// that is no whole vector, a strip of it is copied into such rows first.
#pragma once

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

constexpr int64_t kStrip = 64;  // columns of C that are computed together
// Additions in a row. Where a product is rounded too before it is added, fewer keep the error down; where it is
// not, more save a tenth of the time.
#if defined(__FMA__)
constexpr int64_t kDepth = 256;
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

// Copies `columns` columns of B from j on into rows of `width` elements, the rest of which are zeros.
template <class T>
void pack(const Product<T>& p, int64_t j, int64_t columns, int64_t width, T* panel) {
  constexpr int64_t W = kWidth<T>;
  if (!p.b_by_columns) {
    for (int64_t k = 0; k < p.k; ++k)
      for (int64_t i = 0; i < width; ++i)
        panel[k * width + i] = i < columns ? p.b[k * p.b_stride + j + i] : T(0);
    return;
  }
  for (int64_t first = 0; first < width; first += W) {
    const T* source = p.b + (j + first) * p.b_stride;
    const int64_t count = min(columns - first, W);
    int64_t k = 0;
    if (count == W)
      for (; k + W <= p.k; k += W) {
        Vec<T> block[W];
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) block[i] = load(source + i * p.b_stride + k);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < W; ++i) store(panel + (k + i) * width + first, block[i]);
      }
    for (; k < p.k; ++k)
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

// All rows of `kVectors` vectors of columns.
template <class T, int kVectors>
void columns(const Product<T>& p, const T* b, int64_t b_row, T* c, int64_t n) {
  constexpr int kRows = 6;
  for (int64_t begin = 0; begin < max(p.k, 1); begin += kDepth) {
    const int64_t end = min(begin + kDepth, p.k);
    int64_t row = 0;
    for (; row + kRows <= p.m; row += kRows) tile<T, kRows, kVectors>(p, row, b, b_row, begin, end, c, n);
    switch (p.m - row) {
      case 5:
        tile<T, 5, kVectors>(p, row, b, b_row, begin, end, c, n);
        break;
      case 4:
        tile<T, 4, kVectors>(p, row, b, b_row, begin, end, c, n);
        break;
      case 3:
        tile<T, 3, kVectors>(p, row, b, b_row, begin, end, c, n);
        break;
      case 2:
        tile<T, 2, kVectors>(p, row, b, b_row, begin, end, c, n);
        break;
      case 1:
        tile<T, 1, kVectors>(p, row, b, b_row, begin, end, c, n);
        break;
      default:
        break;
    }
  }
}

// The strip with this index. `panel` has room for kStrip * k elements.
template <class T>
void product_strip(const Product<T>& p, int64_t strip, T* panel) {
  // As many sums as there are registers, less those for the factors.
  constexpr int kVectors = AIGC_VECTOR_BYTES == 64 ? 4 : 2;
  constexpr int64_t W = kWidth<T>;
  const Range range = part_of(p.n, kStrip, strip);
  const int64_t width = round_up(range.size(), W);
  const bool packed = p.b_by_columns || width != range.size();
  if (packed) pack(p, range.begin, range.size(), width, panel);
  const T* b = packed ? panel : p.b + range.begin;
  const int64_t b_row = packed ? width : p.b_stride;
  int64_t at = 0;
  for (; at + kVectors * W <= width; at += kVectors * W)
    columns<T, kVectors>(p, b + at, b_row, p.c + range.begin + at, range.size() - at);
  for (; at < width; at += W) columns<T, 1>(p, b + at, b_row, p.c + range.begin + at, range.size() - at);
}

}  // namespace AIGC_ISA
}  // namespace aigc
