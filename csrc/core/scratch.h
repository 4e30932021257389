// Memory of one call of a CPU kernel.
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

// Zeros, on the boundary of a cache line.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count = 0) { allocate(count); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(data_); }

  void allocate(int64_t count) {
    std::free(data_);
    const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
    data_ = bytes > 0 ? static_cast<T*>(std::aligned_alloc(64, bytes)) : nullptr;
    if (bytes > 0 && data_ == nullptr) throw std::bad_alloc();
    if (bytes > 0) std::memset(static_cast<void*>(data_), 0, bytes);
  }
  T* get() const { return data_; }

 private:
  T* data_ = nullptr;
};

}  // namespace AIGC_ISA
}  // namespace aigc
