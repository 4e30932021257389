// The one way to launch a CUDA kernel. Ops never write <<<>>>: the same .cu files compile for the host
// stand-in of the CUDA runtime in tests/simt, which has no such syntax.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>

namespace aigc {

// A launch with more dynamic shared memory asks for it first: a block gets 48 KB unasked, what the kernel
// declares itself included. Every card from 8.0 on has 99 KB; cudaDevAttrMaxSharedMemoryPerBlockOptin says
// how much this one has.
constexpr size_t kSharedBytesWithoutAsking = 40 << 10;

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
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
        cudaError_t status = cudaSuccess;
        if (shared_bytes > kSharedBytesWithoutAsking)
          status =
              cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (status == cudaSuccess)
          status = cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
        if (status != cudaSuccess)
          throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(status));
#endif
      },
      values);
}

// Blocks enough to fill the current device `waves` times over, and no more than there is work for.
inline unsigned grid_size(int64_t items, int blocks_per_sm = 8) {
  int device = 0, sms = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t full = int64_t(sms) * blocks_per_sm;
  return static_cast<unsigned>(items < full ? items : full);
}

// The smallest power of two that is at least `count`, at most `most`: how many threads share work for so
// many.
inline int power_of_two(int64_t count, int most) {
  int width = 1;
  while (width < most && width < count) width *= 2;
  return width;
}

}  // namespace aigc
