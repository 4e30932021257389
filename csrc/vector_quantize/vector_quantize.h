// The nearest of K codes for each row x of D numbers, and the code itself in place of the row:
//
//     index = argmin over k of |x - c_k|^2, the lowest k of a tie          y = c_index
//
// As |x - c|^2 = |x|^2 - 2 (x.c - |c|^2/2), the nearest code has the largest score s_k = x.c_k - |c_k|^2/2: a
// product of matrices, of which only a tile is ever kept. A score is rounded, by no more than
//
//     e = (D + 4) eps/2 (|x| M + M^2/2),   M the largest |c|,
//
// whatever the order of its sum. Where two scores are less than 2e apart (or overflow), every code whose score
// is that near to the best is compared again, by |x - c|^2 of differences in float64, code after code. So the
// index is that of the nearest code by that sum, and not a matter of instruction sets, tiles or threads; and it
// stays right where the rows are far from 0 and near to each other.
//
// What is not finite: a row with such a number has no nearest code. Its index is -1, and its y NaN. A code with
// a NaN counts as nearer than any other, as for torch.argmin, so that it shows; an infinite one is the farthest.
//
// Derivatives. The index does not change with x or c (almost everywhere). With dy the cotangent of y:
//     dc_k = sum of dy over the rows whose index is k   (code_sums)
// and dx = dy by definition: the straight-through estimator. code_sums is linear in dy; its adjoint writes a
// code in place of each index (code_rows), whose adjoint is code_sums. An index outside of [0, K) has a row of
// NaN in the one, and adds to no sum in the other.
//
// A row's numbers are adjacent (inner == 1) or a plane apart: element = (outer * D + d) * inner + i.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct VectorQuantizeParams {
  DType dtype = DType::float32;  // of x, codes, y and sums
  int64_t outer = 0, depth = 0, inner = 0;
  int64_t num_codes = 0;
  const void* x = nullptr;
  const void* codes = nullptr;          // [K, D]
  const int64_t* indices = nullptr;     // of the rows, where they are given
  int64_t* nearest = nullptr;           // and where they are the result
  void* y = nullptr;                    // like x
  void* sums = nullptr;                 // [K, D]
  void* panel = nullptr;                // the codes in acc_t, in groups of kGroup
  void* negative_half_norms = nullptr;  // -|c|^2/2 in acc_t, for whole groups
  double* partial = nullptr;            // CUDA: kMostParts sums at most, of parts of the rows
};

AIGC_INLINE int64_t rows_of(const VectorQuantizeParams& p) { return p.outer * p.inner; }

// A group of codes in the panel. The kernels cut it into strips, as wide as their registers ask for, and a strip
// has a row for each of the D numbers. Where K is no multiple of it, there are zeros, whose score is -infinity.
constexpr int64_t kGroup = 64;
AIGC_INLINE int64_t code_groups(const VectorQuantizeParams& p) { return ceil_div(p.num_codes, kGroup); }

// Rows of an item. On the CPU they, a strip of 64 codes and what is known of the rows are in the L1 cache together
// if D is 64.
constexpr int64_t kRowBlock = 48;
AIGC_INLINE int64_t row_blocks(const VectorQuantizeParams& p) { return ceil_div(rows_of(p), kRowBlock); }

// Numbers of a row whose sums are an item of code_sums.
constexpr int64_t kColumnBlock = 16;
AIGC_INLINE int64_t column_blocks(const VectorQuantizeParams& p) {
  return p.inner == 1 ? ceil_div(p.depth, kColumnBlock) : p.depth;
}

// Rows are summed in parts on CUDA, which are added up in order.
constexpr int64_t kPartRows = 512, kMostParts = 32;
AIGC_INLINE int64_t part_count(const VectorQuantizeParams& p) {
  return min(ceil_div(rows_of(p), kPartRows), kMostParts);
}

}  // namespace aigc

AIGC_KERNEL(vector_quantize_prepare, VectorQuantizeParams)  // panel and norms; items: groups of codes
AIGC_KERNEL(vector_quantize, VectorQuantizeParams)          // nearest and y; items: blocks of rows
AIGC_KERNEL(code_rows, VectorQuantizeParams)                // y; items: blocks of rows
AIGC_KERNEL(code_sums, VectorQuantizeParams)                // sums; items: blocks of columns
