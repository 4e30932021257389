// y = tanh(z1) * sigmoid(z2), z = x + b, where z1 and z2 are the two halves of z's channels.
//
// A unit is a contiguous run of z1, z2 and y: a plane of `inner` elements where pixels are adjacent (unit =
// n*C + c, one bias for each half), else the C channels of a pixel (unit = pixel, the bias runs along it).
//
// Derivatives: dz1 = dy * sigmoid(z2) * tanh'(z1),  dz2 = dy * tanh(z1) * sigmoid'(z2),  db = sum dz
// Traffic (e = element size of y): forward 3e, backward 5e, with db.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct GatedActParams {
  DType dtype = DType::float32;
  int64_t outer = 0, channels = 0, inner = 0;  // of y: element = (outer * channels + channel) * inner + i
  int64_t units_per_chunk = 0;                 // an item of the kernels is a chunk of units
  const void* x = nullptr;
  const void* b = nullptr;  // 2 * channels elements, or null
  const void* dy = nullptr;
  void* y = nullptr;
  void* dx = nullptr;
  double* partials = nullptr;  // rows of 2 * channels sums of dz: one for each n, or for each chunk of pixels
  void* db = nullptr;
};

AIGC_INLINE bool bias_runs_along(const GatedActParams& p) { return p.inner == 1; }
AIGC_INLINE int64_t unit_count(const GatedActParams& p) {
  return bias_runs_along(p) ? p.outer : p.outer * p.channels;
}
AIGC_INLINE int64_t unit_length(const GatedActParams& p) { return bias_runs_along(p) ? p.channels : p.inner; }
AIGC_INLINE int64_t chunk_count(const GatedActParams& p) {
  return ceil_div(unit_count(p), p.units_per_chunk);
}
AIGC_INLINE int64_t partial_rows(const GatedActParams& p) {
  return bias_runs_along(p) ? chunk_count(p) : p.outer;
}

}  // namespace aigc

AIGC_KERNEL(gated_act_forward, GatedActParams)   // items: chunks
AIGC_KERNEL(gated_act_backward, GatedActParams)  // items: chunks
AIGC_KERNEL(gated_act_reduce, GatedActParams)    // items: 2 * channels; partials -> db
