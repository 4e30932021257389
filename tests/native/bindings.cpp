// csrc/core for NumPy: one module with all instruction sets of this machine's architecture.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core_ops.h"
#include "guarded.h"

namespace py = pybind11;

AIGC_DECLARE_CORE_OPS(cpu_baseline)
#if defined(__x86_64__)
AIGC_DECLARE_CORE_OPS(cpu_avx2)
AIGC_DECLARE_CORE_OPS(cpu_avx512)
#endif

namespace {

using Run = bool (*)(const char*, const void*, int64_t, void*, int64_t);

struct Isa {
  const char* name;
  Run run;
  bool (*supported)();
};

const Isa kIsas[] = {
    {"baseline", aigc::cpu_baseline::run_core_op, [] { return true; }},
#if defined(__x86_64__)
    {"avx2", aigc::cpu_avx2::run_core_op,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     }},
    {"avx512", aigc::cpu_avx512::run_core_op,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
#endif
};

// The operation finds the bytes that `out` has on entry.
void run(const std::string& isa, const std::string& op, const py::array& in, py::array& out) {
  for (const Isa& candidate : kIsas) {
    if (candidate.name != isa) continue;
    if (!candidate.supported()) throw std::runtime_error("this CPU does not have " + isa);
    GuardedBuffer in_buffer(in.data(), in.nbytes()), out_buffer(out.data(), out.nbytes());
    if (!candidate.run(op.c_str(), in_buffer.data(), in.nbytes(), out_buffer.data(), out.nbytes()))
      throw std::invalid_argument("no operation '" + op + "'");
    if (out.nbytes() > 0) std::memcpy(out.mutable_data(), out_buffer.data(), out.nbytes());
    return;
  }
  throw std::invalid_argument("no instruction set '" + isa + "'");
}

}  // namespace

PYBIND11_MODULE(aigc_core, m) {
  m.def("isas", [] {
    py::dict supported;
    for (const Isa& isa : kIsas) supported[isa.name] = isa.supported();
    return supported;
  });
  m.def("run", &run);
}
