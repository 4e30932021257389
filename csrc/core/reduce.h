// Sums whose order depends on nothing but the sizes.
#pragma once

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {

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
