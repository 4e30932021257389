// csrc/core behind one function per instruction set, for the tests.
#pragma once

#include <cstdint>

// Runs an operation of core_ops.cpp on arrays of bytes; returns false if there is none of that name.
#define AIGC_DECLARE_CORE_OPS(isa)                                                                  \
  namespace aigc {                                                                                  \
  namespace isa {                                                                                   \
  bool run_core_op(const char* op, const void* in, int64_t in_bytes, void* out, int64_t out_bytes); \
  }                                                                                                 \
  }
