// Shared memory that knows its size. Under CUDA these are plain arrays; the stand-in of tests/simt checks
// every index, and fills the memory with NaN bits before each block.
//
//   __shared__ SharedArray<float, 256> sums;                   // a constant size
//   const auto tile = dynamic_shared<float>();                 // all of the launch's shared_bytes
//   const auto filter = dynamic_shared<float>(n * 4, taps);    // `taps` elements after the first n * 4 bytes
//
// A SharedSpan refers to either of them, or to a part: helpers take one. Where a plain pointer is needed, for
// a vector access or an asynchronous copy, `at(i, n)` returns a pointer to n elements and checks that there
// are as many.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace aigc {

// It has no constructor under CUDA, since __shared__ allows none. `kAlign` is for vector accesses. Arrays
// nest: SharedArray<SharedArray<float, 33>, 32>.
template <class T, int N, int kAlign = alignof(T)>
struct SharedArray {
#if defined(AIGC_SIMT)
  SharedArray() { simt::add_shared(element, sizeof(element)); }
  SharedArray(const SharedArray&) = delete;
#endif

  template <class Index>
  __device__ T& operator[](Index i) {
#if defined(AIGC_SIMT)
    simt::check_shared(static_cast<int64_t>(i), 1, N);
#endif
    return element[i];
  }
  __device__ T* at(int64_t i, [[maybe_unused]] int64_t n) {
#if defined(AIGC_SIMT)
    simt::check_shared(i, n, N);
#endif
    return element + i;
  }
  __device__ T* data() { return element; }  // unchecked

  alignas(kAlign) T element[N];
};

template <class T>
class SharedSpan {
 public:
  template <int N, int kAlign>
  __device__ SharedSpan(SharedArray<T, N, kAlign>& array) : SharedSpan(array.data(), N) {}
  __device__ SharedSpan(T* data, [[maybe_unused]] int64_t size) : data_(data) {
#if defined(AIGC_SIMT)
    size_ = size;
#endif
  }

  template <class Index>
  __device__ T& operator[](Index i) const {
#if defined(AIGC_SIMT)
    simt::check_shared(static_cast<int64_t>(i), 1, size_);
#endif
    return data_[i];
  }
  __device__ T* at(int64_t i, [[maybe_unused]] int64_t n) const {
#if defined(AIGC_SIMT)
    simt::check_shared(i, n, size_);
#endif
    return data_ + i;
  }
  __device__ SharedSpan part(int64_t i, int64_t n) const { return {at(i, n), n}; }
  __device__ T* data() const { return data_; }  // unchecked

 private:
  T* data_;
#if defined(AIGC_SIMT)
  int64_t size_;
#endif
};

#if defined(AIGC_SIMT)

template <class T>
SharedSpan<T> dynamic_shared(size_t first_byte, int64_t count) {
  return {static_cast<T*>(simt::dynamic_shared(first_byte, alignof(T), sizeof(T), count)), count};
}
template <class T>
SharedSpan<T> dynamic_shared() {
  return dynamic_shared<T>(0, int64_t(simt::dynamic_shared_bytes() / sizeof(T)));
}

#else

// Dynamic shared memory is aligned to 16 bytes. All kernels share this declaration.
extern __shared__ __align__(16) unsigned char dynamic_shared_memory[];

template <class T>
__device__ SharedSpan<T> dynamic_shared(size_t first_byte, int64_t count) {
  return {reinterpret_cast<T*>(dynamic_shared_memory + first_byte), count};
}
template <class T>
__device__ SharedSpan<T> dynamic_shared() {
  return dynamic_shared<T>(0, 0);  // the size is not kept
}

#endif

}  // namespace aigc
