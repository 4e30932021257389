// y = clamp(gain * f(x + b + strength * noise), -clamp, clamp)
//
// The elements are processed in memory order as `rows` of `row_length`, and a row's addend is
//     row_add[row] + vec_scale * vec[i]
// where one of bias and noise is constant along a row and the other runs along it:
//     bias constant (NCHW)           rows = N*C,    row_length = H*W,  vec = noise
//     bias along the row (NHWC, NC)  rows = N*H*W,  row_length = C,    vec = bias
// Short rows are merged: a row then holds several periods of the bias, and the last row may be partial.
//
// For the piecewise-linear activations the forward saves one bit per element and plane for the backward
// (plane 0: the branch x > 0, unless the activation is linear; next plane: not clamped, if there is a clamp).
// Each row begins with a new byte.
//
// Derivatives, with z = x + b + strength*noise and c(z) = [|gain*f(z)| <= clamp] (1 on the boundary, as
// torch.clamp):
//     D(z) = gain*f'(z)*c(z):   dz = dy*D(z),   db = sum dz,   dstrength = sum dz*noise
//     second order, cotangent u of dz:  d(dy) = u*D(z),  d(z) = u*dy*gain*f''(z)*c(z)
#pragma once

#include "core/activation.h"
#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct BiasActParams {
  DType dtype = DType::float32;
  Act act = Act::linear;
  double alpha = 0, gain = 1;
  double clamp = -1;  // < 0: off

  int64_t numel = 0;
  int64_t rows = 0, row_length = 0;  // rows * row_length >= numel
  int64_t rows_per_chunk = 0;        // an item of the kernels is a chunk of rows
  int64_t channels = 1;              // bias index of an element is
  int64_t inner = 1;                 // (position in memory / inner) % channels
  bool vec_is_bias = false;  // bias runs along the row, noise is constant on it; otherwise the reverse
  int64_t noise_period = 0;  // elements of noise: the index in it is taken modulo this

  const void* x = nullptr;     // may be null in a backward with the mask
  const void* bias = nullptr;  // `channels` elements
  const void* noise = nullptr;
  const void* strength = nullptr;  // one element
  void* y = nullptr;               // forward
  uint8_t* mask = nullptr;         // written by the forward (null: not wanted), read by the backward
  int64_t plane_bytes = 0;         // of one plane of the mask

  const void* dy = nullptr;
  const void* u = nullptr;  // second order: cotangent of dz
  void* dz = nullptr;       // first order: dz; second order: gradient of dy
  void* dz2 = nullptr;      // second order: gradient of z

  // Partial sums of the gradient of z: one per row where the bias is constant on a row, else one vector of
  // row_length per chunk. And of (gradient of z)*noise: one per chunk.
  double* bias_partials = nullptr;
  double* strength_partials = nullptr;
  void* dbias = nullptr;  // `channels` elements
  void* dstrength = nullptr;
};

AIGC_INLINE bool has_branch_plane(const BiasActParams& p) {
  return p.act == Act::relu || p.act == Act::lrelu;
}
AIGC_INLINE int mask_planes(const BiasActParams& p) {
  return (has_branch_plane(p) ? 1 : 0) + (p.clamp >= 0 ? 1 : 0);
}
AIGC_INLINE int64_t mask_row_bytes(const BiasActParams& p) { return ceil_div(p.row_length, 8); }
AIGC_INLINE int64_t chunk_count(const BiasActParams& p) { return ceil_div(p.rows, p.rows_per_chunk); }

}  // namespace aigc

// Items are chunks:
AIGC_KERNEL(bias_act_forward, BiasActParams)
AIGC_KERNEL(bias_act_backward, BiasActParams)
AIGC_KERNEL(bias_act_double_backward, BiasActParams)  // smooth activations only
// Items are channels:
AIGC_KERNEL(bias_act_reduce, BiasActParams)  // partials -> dbias and, with item 0, dstrength
