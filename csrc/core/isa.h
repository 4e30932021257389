// Which of the compiled instruction sets is used: the widest that this CPU supports, or the one that
// AIGC_EXT_ISA names.
#pragma once

#include <cstdint>

#ifdef AIGC_ISA  // a kernel file: its namespace must be inline from its first declaration on
namespace aigc {
inline namespace AIGC_ISA {}
}  // namespace aigc
#endif

namespace aigc {

enum class Isa : int { baseline, avx2, avx512 };

// Throws std::runtime_error if AIGC_EXT_ISA names a set that is unknown, not compiled in, or not supported by
// this CPU.
Isa active_isa();
const char* isa_name(Isa isa);

}  // namespace aigc

// Declares a kernel for every backend. On the CPU a kernel processes the items [begin, end) of the work that
// its Params describe; items are independent, so any partition over threads gives the same bits. On CUDA it
// launches all items.
#define AIGC_KERNEL(name, Params)                                      \
  namespace aigc {                                                     \
  namespace cpu_baseline {                                             \
  void name(const Params& params, int64_t begin, int64_t end);         \
  }                                                                    \
  AIGC_X86_KERNEL(name, Params)                                        \
  namespace cpu {                                                      \
  inline void name(const Params& params, int64_t begin, int64_t end) { \
    AIGC_CALL_ACTIVE_ISA(name, params, begin, end);                    \
  }                                                                    \
  }                                                                    \
  namespace cuda {                                                     \
  void name(const Params& params, int64_t items, void* stream);        \
  }                                                                    \
  }

#if defined(__x86_64__) && !defined(AIGC_BASELINE_ONLY)
#define AIGC_X86_KERNEL(name, Params)                          \
  namespace cpu_avx2 {                                         \
  void name(const Params& params, int64_t begin, int64_t end); \
  }                                                            \
  namespace cpu_avx512 {                                       \
  void name(const Params& params, int64_t begin, int64_t end); \
  }
#define AIGC_CALL_ACTIVE_ISA(name, ...)       \
  switch (active_isa()) {                     \
    case Isa::baseline:                       \
      return cpu_baseline::name(__VA_ARGS__); \
    case Isa::avx2:                           \
      return cpu_avx2::name(__VA_ARGS__);     \
    case Isa::avx512:                         \
      return cpu_avx512::name(__VA_ARGS__);   \
  }
#else
#define AIGC_X86_KERNEL(name, Params)
#define AIGC_CALL_ACTIVE_ISA(name, ...) cpu_baseline::name(__VA_ARGS__)
#endif
