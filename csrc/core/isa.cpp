#include "core/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace aigc {
namespace {

bool supported(Isa isa) {
#if defined(__x86_64__) && !defined(AIGC_BASELINE_ONLY)
  const bool avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::baseline:
      return true;
    case Isa::avx2:
      return avx2;
    case Isa::avx512:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

Isa choose() {
  const char* wanted = std::getenv("AIGC_EXT_ISA");
  const bool forced = wanted != nullptr && *wanted != '\0';
  std::string here;
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::baseline}) {  // the widest first
    if (!supported(isa)) continue;
    if (!forced || std::strcmp(wanted, isa_name(isa)) == 0) return isa;
    here += (here.empty() ? "" : ", ") + std::string(isa_name(isa));
  }
  throw std::runtime_error("AIGC_EXT_ISA is '" + std::string(wanted) + "', but on this CPU must be one of " +
                           here + ", or unset");
}

}  // namespace

Isa active_isa() {
  static const Isa isa = choose();
  return isa;
}

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::baseline:
      return "baseline";
    case Isa::avx2:
      return "avx2";
    case Isa::avx512:
      return "avx512";
  }
  return "unknown";
}

}  // namespace aigc
