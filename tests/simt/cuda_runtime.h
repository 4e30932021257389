// A stand-in for the CUDA runtime: with it the host compiler compiles .cu files, whose kernels then run on
// the CPU. A grid runs block by block, the threads of a block as fibers that switch at barriers and warp
// collectives (simt.cpp). What CUDA leaves undefined is an error here: a barrier that not all threads of a
// block reach, a collective that not all lanes of its mask reach. Shared memory is filled with NaN bits
// before each block.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#define AIGC_SIMT

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
// Only a SharedArray (core/cuda_shared.h) is filled with NaN bits and checked for its bounds: declare nothing
// else __shared__.
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }

namespace simt {

constexpr size_t kMostDynamicShared = 99 << 10;  // the least among the cards that the library is built for

extern dim3 thread_index, block_index, block_size, grid_size;

struct Kernel {
  const void* address;
  const char* launch;  // a less precise name, in case the symbol table has none
};

// Runs the kernel's `body` for every thread of the grid. If the kernel breaks the rules, throws
// std::runtime_error, which names kernel, block and thread. AIGC_SIMT_SEED=n shuffles the order of blocks and
// threads.
void run(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// The rest is called by a kernel's threads.

// Ends the grid with an error that names the calling thread.
[[noreturn]] void refuse(const std::string& why);

// Registers a SharedArray when a kernel reaches its declaration for the first time.
void add_shared(void* begin, size_t bytes);
// Refuses elements [i, i + n) that are not all within `size`.
void check_shared(int64_t i, int64_t n, int64_t size);
size_t dynamic_shared_bytes();
void* dynamic_shared(size_t first_byte, size_t alignment, size_t element_bytes, int64_t count);

void block_barrier();

}  // namespace simt

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  *value = which == cudaDevAttrMultiProcessorCount ? 1 : int(simt::kMostDynamicShared);
  return cudaSuccess;
}

#define threadIdx ::simt::thread_index
#define blockIdx ::simt::block_index
#define blockDim ::simt::block_size
#define gridDim ::simt::grid_size
constexpr int warpSize = 32;

inline void __syncthreads() { simt::block_barrier(); }

[[noreturn]] inline void __trap() { simt::refuse("__trap"); }

#include "atomics.h"
#include "collectives.h"
#include "intrinsics.h"
#include "vector_types.h"
