// A stand-in for the CUDA runtime: compiles .cu files with the host compiler and runs their kernels on the
// CPU. A grid runs block by block, the threads of a block as fibers that switch at barriers and warp
// collectives (simt.cpp). What CUDA leaves undefined is an error here: a barrier that not all threads of a
// block reach, a collective that not all lanes of its mask reach. Shared memory is filled with NaN bits
// before each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define AIGC_SIMT

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
// In a section of its own, which the harness finds and fills. Only for kernels of internal linkage.
#define __shared__ static __attribute__((section("simt_shared")))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

namespace simt {

constexpr int kWarp = 32;
constexpr size_t kMostDynamicShared = 99 << 10;  // of the smallest of the cards that the library is built for

extern dim3 thread_index, block_index, block_size, grid_size;

// Runs the kernel's `body` for every thread of the grid. Throws std::runtime_error that names kernel, block
// and thread where the kernel breaks the rules. AIGC_SIMT_SEED=n shuffles the order of the threads.
void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// The rest is called by a kernel's threads.

// Ends the grid by an error that names the calling thread.
[[noreturn]] void refuse(const std::string& why);

// That elements [i, i + n) are some of `size`.
void check_shared(int64_t i, int64_t n, int64_t size);
size_t dynamic_shared_bytes();
void* dynamic_shared(size_t first_byte, size_t alignment, size_t element_bytes, int64_t count);

void block_barrier();
// Deposits `value` and returns, once all lanes of `mask` have called it, those of the warp.
const uint64_t* exchange(const char* what, unsigned mask, uint64_t value);
int lane();

template <class T>
T shuffle(const char* what, unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* values = exchange(what, mask, bits);
  T result;
  std::memcpy(&result, &values[source], sizeof(T));
  return result;
}

}  // namespace simt

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? 1 : int(simt::kMostDynamicShared);
  return cudaSuccess;
}

#define threadIdx ::simt::thread_index
#define blockIdx ::simt::block_index
#define blockDim ::simt::block_size
#define gridDim ::simt::grid_size

inline void __syncthreads() { simt::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::exchange("__syncwarp", mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = simt::kWarp) {
  const int base = simt::lane() / width * width;
  return simt::shuffle("__shfl_sync", mask, value, base + source % width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  const int lane = simt::lane(), from = lane + int(delta);
  return simt::shuffle("__shfl_down_sync", mask, value, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  const int lane = simt::lane(), from = lane - int(delta);
  return simt::shuffle("__shfl_up_sync", mask, value, from >= lane / width * width ? from : lane);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = simt::kWarp) {
  const int lane = simt::lane(), from = lane ^ bits;
  return simt::shuffle("__shfl_xor_sync", mask, value, from / width <= lane / width ? from : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* values = simt::exchange("__ballot_sync", mask, predicate != 0);
  unsigned ballot = 0;
  for (int i = 0; i < simt::kWarp; ++i)
    if ((mask >> i & 1) && values[i]) ballot |= 1u << i;
  return ballot;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <class T>
T atomicAdd(T* address, T value) {  // one fiber runs at a time
  const T old = *address;
  *address = old + value;
  return old;
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
