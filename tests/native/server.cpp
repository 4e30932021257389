// The operations behind a pipe, for an architecture that Python does not run on here. A request is a line
// "<op> <input bytes> <output bytes>", the input, and the initial output; the answer is the output.
#include <cinttypes>
#include <cstdio>

#include "core_ops.h"
#include "guarded.h"

AIGC_DECLARE_CORE_OPS(cpu_baseline)

int main() {
  char op[64];
  int64_t in_bytes, out_bytes;
  while (std::scanf("%63s %" SCNd64 " %" SCNd64, op, &in_bytes, &out_bytes) == 3) {
    std::getchar();  // the end of the line
    GuardedBuffer in(in_bytes), out(out_bytes);
    if (std::fread(in.data(), 1, in_bytes, stdin) != static_cast<size_t>(in_bytes) ||
        std::fread(out.data(), 1, out_bytes, stdin) != static_cast<size_t>(out_bytes))
      return 1;
    if (!aigc::cpu_baseline::run_core_op(op, in.data(), in_bytes, out.data(), out_bytes)) {
      std::fprintf(stderr, "no operation '%s'\n", op);
      return 1;
    }
    std::fwrite(out.data(), 1, out_bytes, stdout);
    std::fflush(stdout);
  }
}
