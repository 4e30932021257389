// The one way to launch a CUDA kernel. Ops never write <<<>>>: the same .cu files also compile as plain C++
// against the stand-in for the CUDA runtime in tests/simt, which has no such syntax.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

namespace aigc {

// A launch with more dynamic shared memory than this has to opt in first: by default a block gets 48 KB,
// including the kernel's static shared memory. Every card of compute capability 8.0 or higher has 99 KB;
// cudaDevAttrMaxSharedMemoryPerBlockOptin tells how much the current one has.
constexpr size_t kSharedBytesWithoutAsking = 40 << 10;

// Throws what the CUDA runtime says of a call that did not succeed. The runtime forgets an error that it has told,
// so that the next launch, which may be PyTorch's, does not report it as its own.
inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string(call) + " failed: " + cudaGetErrorString(status));
}
#define AIGC_CHECK_CUDA(function, ...) ::aigc::check_cuda(function(__VA_ARGS__), #function)

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, void* stream,
            const Args&... args) {
  // Converted to the kernel's own parameter types: cudaLaunchKernel reads them through pointers.
  std::tuple<Params...> values(args...);
  std::apply(
      [&](auto&... value) {
#if defined(AIGC_SIMT)
        const simt::Kernel named{reinterpret_cast<const void*>(kernel), __PRETTY_FUNCTION__};
        simt::run(named, grid, block, shared_bytes, [&] { kernel(value...); });
        static_cast<void>(stream);
#else
        void* pointers[] = {static_cast<void*>(&value)...};
        const auto* function = reinterpret_cast<const void*>(kernel);
        if (shared_bytes > kSharedBytesWithoutAsking)
          AIGC_CHECK_CUDA(cudaFuncSetAttribute, function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                          int(shared_bytes));
        AIGC_CHECK_CUDA(cudaLaunchKernel, function, grid, block, pointers, shared_bytes,
                        static_cast<cudaStream_t>(stream));
#endif
      },
      values);
}

// Enough blocks to fill the current device, but no more than there are items.
inline unsigned grid_size(int64_t items, int blocks_per_sm = 8) {
  int device = 0, sms = 1;
  AIGC_CHECK_CUDA(cudaGetDevice, &device);
  AIGC_CHECK_CUDA(cudaDeviceGetAttribute, &sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t full = int64_t(sms) * blocks_per_sm;
  return static_cast<unsigned>(items < full ? items : full);
}

// How many of `rows` get a row of blocks, along y, where a card takes no more than 65,535. The kernel's loop over
// them advances by gridDim.y. Fibers take fewer, so that the tests reach the second turn of that loop.
inline unsigned grid_rows(int64_t rows) {
#if defined(AIGC_SIMT)
  constexpr int64_t kMost = 2;
#else
  constexpr int64_t kMost = 65535;
#endif
  return static_cast<unsigned>(rows < kMost ? rows : kMost);
}

// The smallest power of two that is at least `count`, or `most` if that is less: how many threads share
// `count` pieces of work.
inline int power_of_two(int64_t count, int most) {
  int width = 1;
  while (width < most && width < count) width *= 2;
  return width;
}

}  // namespace aigc
