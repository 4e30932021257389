// How the backend that a file is compiled for runs a kernel, and where its ops are registered.
//
// An op's glue is compiled once per backend:
//   AIGC_BACKEND_CPU   libaigc_ops       schemas and CPU kernels
//   AIGC_BACKEND_CUDA  libaigc_ops_cuda  CUDA kernels
//   AIGC_BACKEND_SIMT  libaigc_ops_simt  schemas and CUDA kernels on the CPU, for tests (tests/simt)
//   AIGC_BACKEND_NONE  libaigc_ops_simt  only the schemas, of ops that have no CUDA kernels
#pragma once

#include <torch/csrc/stable/library.h>

#include "core/isa.h"
#include "glue/tensor.h"

namespace aigc {
#if defined(AIGC_BACKEND_CPU)
constexpr bool kOnGpu = false;
#else
constexpr bool kOnGpu = true;  // or as if
#endif

// How many items make up `elements`, which are enough work for a thread: the grain of AIGC_RUN.
constexpr int64_t grain_of(int64_t elements, int64_t item_elements) {
  return max(elements / max(item_elements, 1), 1);
}
}  // namespace aigc

// The schemas of a file, for PyTorch's library or for ArgumentNames.
#define AIGC_SCHEMAS(library) \
  template <class Library>    \
  static void aigc_schemas(Library& library)
#define AIGC_DEFINE_OPS(library)                                                \
  AIGC_SCHEMAS(library);                                                        \
  STABLE_TORCH_LIBRARY_FRAGMENT(aigc, registered) { aigc_schemas(registered); } \
  AIGC_SCHEMAS(library)

#if defined(AIGC_BACKEND_CPU)

#define AIGC_OPS(library) AIGC_DEFINE_OPS(library)
#define AIGC_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(aigc, CPU, library)
// Runs `items` independent items of a kernel, at least `grain` of them on a thread.
#define AIGC_RUN(kernel, params, items, grain, device_of) \
  ::aigc::run_on_threads(::aigc::cpu::kernel, params, items, grain)

#if defined(AIGC_TSAN)
#include <thread>
#endif

namespace aigc {

#if defined(AIGC_TSAN)

// ThreadSanitizer does not see how OpenMP's threads, which parallel_for has, wait for each other. These it sees, and
// there are several wherever there are several items.
template <class Params>
void run_on_threads(void (*kernel)(const Params&, int64_t, int64_t), const Params& params, int64_t items,
                    int64_t /*grain*/) {
  const int64_t count = items < 4 ? items : 4;
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i)
    threads.emplace_back([&, i] { kernel(params, items * i / count, items * (i + 1) / count); });
  for (std::thread& thread : threads) thread.join();
}

#else

template <class Params>
void run_on_threads(void (*kernel)(const Params&, int64_t, int64_t), const Params& params, int64_t items,
                    int64_t grain) {
  if (items <= grain) {
    if (items > 0) kernel(params, 0, items);
    return;
  }
  torch::stable::parallel_for(0, items, grain,
                              [&](int64_t begin, int64_t end) { kernel(params, begin, end); });
}

#endif

}  // namespace aigc

#elif defined(AIGC_BACKEND_CUDA)

// The schemas are libaigc_ops' own.
#define AIGC_OPS(library) AIGC_SCHEMAS(library)
#define AIGC_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(aigc, CUDA, library)
#define AIGC_RUN(kernel, params, items, grain, device_of) \
  ::aigc::run_on_stream(::aigc::cuda::kernel, params, items, grain, device_of)

namespace aigc {

template <class Params>
void run_on_stream(void (*kernel)(const Params&, int64_t, void*), const Params& params, int64_t items,
                   int64_t /*grain*/, const Tensor& device_of) {
  if (items == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(device_of.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_of.get_device_index(), &stream));
  kernel(params, items, stream);
}

}  // namespace aigc

#elif defined(AIGC_BACKEND_SIMT)

#define AIGC_OPS(library) AIGC_DEFINE_OPS(library)
#define AIGC_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(aigc, CPU, library)
#define AIGC_RUN(kernel, params, items, grain, device_of) \
  ::aigc::run_on_fibers(::aigc::cuda::kernel, params, items, grain)

namespace aigc {

template <class Params>
void run_on_fibers(void (*kernel)(const Params&, int64_t, void*), const Params& params, int64_t items,
                   int64_t /*grain*/) {
  if (items > 0) kernel(params, items, nullptr);
}

}  // namespace aigc

#elif defined(AIGC_BACKEND_NONE)

#define AIGC_OPS(library) AIGC_DEFINE_OPS(library)
// Nothing is registered, so the op's functions are not called, and refer to no kernel.
#define AIGC_IMPL(library) \
  [[maybe_unused]] static void aigc_implementations(torch::stable::detail::StableLibrary& library)
#define AIGC_RUN(kernel, params, items, grain, device_of) \
  static_cast<void>(params), static_cast<void>(items), static_cast<void>(grain), static_cast<void>(device_of)

#else
#error "compile glue with AIGC_BACKEND_CPU, AIGC_BACKEND_CUDA, AIGC_BACKEND_SIMT or AIGC_BACKEND_NONE"
#endif
