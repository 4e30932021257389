// Sums whose order depends on nothing but the sizes.
#pragma once

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

// Sums run in acc_t over this many additions and are then added up in float64, so that the error stays that
// of a short sum.
constexpr int kSumBlock = 64;

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

}  // namespace AIGC_ISA
}  // namespace aigc
