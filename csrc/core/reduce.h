// Sums whose order depends on nothing but the sizes.
#pragma once

#include "core/scratch.h"
#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

inline double sum_of(const double* terms, int64_t count, int64_t stride = 1) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += terms[i * stride];
  return sum;
}

// The sum of vectors over all their lanes.
template <class T>
class BlockSum {
 public:
  void add(Vec<T> x) {
    block_ += x;
    if (++added_ == kSumBlock) flush();
  }
  double total() {
    flush();
    return total_;
  }

 private:
  void flush() {
    total_ += horizontal_sum(block_);
    block_ = Vec<T>{};
    added_ = 0;
  }

  Vec<T> block_{};
  int added_ = 0;
  double total_ = 0;
};

// N sums for each of `width` columns, over rows that are added vector by vector. They run in acc_t over
// kSumBlock rows and are then added up in float64, in totals[N][width].
template <class T, int N = 1>
class ColumnSums {
 public:
  explicit ColumnSums(int64_t width) : width_(width), stride_(round_up(width, kWidth<T>)) {
    if (width > 0) block_.allocate(N * stride_);
  }

  // Begins new sums. `totals` must be valid until end().
  void begin(double* totals) {
    totals_ = totals;
    for (int64_t i = 0; i < N * width_; ++i) totals[i] = 0;
  }
  // Calls f(sums) with the N sums of the vector of columns from i on. What it adds beyond the last column is
  // ignored.
  template <class F>
  void update(int64_t i, F&& f) {
    Vec<T> sums[N];
    for (int s = 0; s < N; ++s) sums[s] = load(&block_[s * stride_ + i]);
    f(sums);
    for (int s = 0; s < N; ++s) store(&block_[s * stride_ + i], sums[s]);
  }
  void end_row() {
    if (++rows_ == kSumBlock) end_block();
  }
  void end_block() {
    for (int s = 0; s < N; ++s)
      for (int64_t i = 0; i < width_; ++i) {
        totals_[s * width_ + i] += block_[s * stride_ + i];
        block_[s * stride_ + i] = 0;
      }
    rows_ = 0;
  }

 private:
  int64_t width_, stride_;
  Scratch<acc_t<T>> block_;
  double* totals_ = nullptr;
  int rows_ = 0;
};

}  // namespace AIGC_ISA
}  // namespace aigc
