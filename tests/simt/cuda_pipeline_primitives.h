// Asynchronous copies into shared memory (cp.async), made as late as CUDA may make them: from the call on the
// destination holds NaN bits, and the data appears in the __pipeline_wait_prior of the thread that called. So
// both a read before the wait and a copy into memory that other threads still read are detected.
#pragma once

#include "cuda_runtime.h"

namespace simt {
void copy_async(void* shared, const void* global, size_t bytes, size_t zero_bytes);
void commit_copies();
void wait_for_copies(unsigned batches_left);
}  // namespace simt

// The last `zero_bytes` of the destination become zero, and as many bytes of the source are not read.
inline void __pipeline_memcpy_async(void* shared, const void* global, size_t bytes, size_t zero_bytes = 0) {
  simt::copy_async(shared, global, bytes, zero_bytes);
}
inline void __pipeline_commit() { simt::commit_copies(); }
inline void __pipeline_wait_prior(size_t batches_left) {
  simt::wait_for_copies(batches_left < 8 ? unsigned(batches_left) : 8);
}
