// Temporary memory of one call of a CPU kernel.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#ifndef AIGC_ISA
#error "compile kernel files with -DAIGC_ISA=<instruction set>"
#endif

namespace aigc {
inline namespace AIGC_ISA {

// Zero-initialized and aligned to a cache line.
template <class T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count) { allocate(count); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  void allocate(int64_t count) {
    std::free(data_);
    const size_t bytes = static_cast<size_t>(count) * sizeof(T) / 64 * 64 + 64;
    data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
    if (data_ == nullptr) throw std::bad_alloc();
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  T* get() const { return data_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
};

}  // namespace AIGC_ISA
}  // namespace aigc
