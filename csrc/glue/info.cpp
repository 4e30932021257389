// What `python -m aigc_ext.info` reports about the library.
#include "glue/backend.h"

namespace aigc {
namespace {

std::string instruction_set() { return isa_name(active_isa()); }

std::string build_info() {
  std::ostringstream out;
  out << "aigc_ext " << AIGC_VERSION << ", C++ " << __cplusplus / 100 % 100 << ", " <<
#if defined(__clang__)
      "clang " << __clang_version__
#else
      "GCC " << __VERSION__
#endif
      << ", built with torch " << TORCH_VERSION_MAJOR << '.' << TORCH_VERSION_MINOR << '.'
      << TORCH_VERSION_PATCH << " for torch >= " << (TORCH_TARGET_VERSION >> 56) << '.'
      << (TORCH_TARGET_VERSION >> 48 & 0xff);
  return out.str();
}

}  // namespace

AIGC_OPS(m) {
  m.def("instruction_set() -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(aigc, CompositeExplicitAutograd, m) {
  AIGC_BIND(m, "instruction_set", instruction_set);
  AIGC_BIND(m, "build_info", build_info);
}

}  // namespace aigc
