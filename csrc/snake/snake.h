// y = x + sin^2(u) / alpha, u = alpha*x, with one alpha for each channel.
//
// With s = sin u, c = cos u and q = s/u (1 at u = 0), nothing divides by alpha:
//     y = x (1 + s q),   dy/dx = 1 + 2 s c,   dy/dalpha = x^2 h,   h = q (2c - q)
// Second derivatives:
//     d2y/dx2 = 2 alpha cos 2u,   d2y/dx dalpha = 2 x cos 2u,   d2y/dalpha2 = x^3 k,
//     k = dh/du = 2 ((c - q)^2 / u - s q)   (0 at u = 0)
// Next to u = 0, h is 1 - u^2 and k is -2u, and neither form cancels there: no series is needed.
//
// The gradients, with g the gradient of y:
//     dx = g dy/dx,   dalpha = sum g dy/dalpha
// Second order, with v the cotangent of dx and w that of dalpha:
//     d(g) = v dy/dx + w dy/dalpha
//     d(x) = 2 g cos 2u (alpha v + x w),   d(alpha) = sum g (2 x cos 2u v + x^3 k w)
//
// Where alpha*x overflows, its sine has no digits: there s = c = q = 0, so that y = x and dy/dx is 1, which is
// its mean over a period.
//
// A unit is a contiguous run of elements: a segment of a plane of `inner` elements where those are adjacent
// (alpha is one number for all of them), else the C channels of a pixel (alpha runs along it).
//
// Traffic (e = element size): 2e, 3e, 5e.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct SnakeParams {
  DType dtype = DType::float32;
  int64_t outer = 0, channels = 0, inner = 0;  // element = (outer * channels + channel) * inner + i
  int64_t segment = 1;          // length of a plane's segments, of which the last may be shorter
  int64_t units_per_chunk = 1;  // an item of the kernels is a chunk of units
  const void* x = nullptr;
  const void* alpha = nullptr;  // `channels` elements
  const void* dy = nullptr;
  const void* v = nullptr;     // second order: the cotangent of dx
  const void* w = nullptr;     // second order: that of dalpha, `channels` elements
  void* y = nullptr;           // y; dx; second order: the gradient of x
  void* grad_dy = nullptr;     // second order
  double* partials = nullptr;  // rows of `channels` sums; null: no gradient of alpha is wanted
  void* dalpha = nullptr;      // `channels` elements
};

AIGC_INLINE bool alpha_runs_along(const SnakeParams& p) { return p.inner == 1; }
AIGC_INLINE int64_t segments(const SnakeParams& p) { return ceil_div(p.inner, p.segment); }
AIGC_INLINE int64_t unit_count(const SnakeParams& p) {
  return alpha_runs_along(p) ? p.outer : p.outer * p.channels * segments(p);
}
AIGC_INLINE int64_t unit_length(const SnakeParams& p) {
  return alpha_runs_along(p) ? p.channels : min(p.segment, p.inner);
}
AIGC_INLINE int64_t chunk_count(const SnakeParams& p) { return ceil_div(unit_count(p), p.units_per_chunk); }
AIGC_INLINE int64_t partial_rows(const SnakeParams& p) {
  return alpha_runs_along(p) ? chunk_count(p) : p.outer * segments(p);
}

// Where the segment of a plane lies.
struct SnakeSegment {
  int64_t channel, begin, length;
  int64_t partial;  // the place of its sum
};
AIGC_INLINE SnakeSegment snake_segment(const SnakeParams& p, int64_t unit) {
  const int64_t plane = unit / segments(p), part = unit - plane * segments(p);
  const int64_t sample = plane / p.channels, channel = plane - sample * p.channels;
  const int64_t left = part * p.segment;
  return {channel, plane * p.inner + left, min(p.segment, p.inner - left),
          (sample * segments(p) + part) * p.channels + channel};
}

}  // namespace aigc

AIGC_KERNEL(snake_forward, SnakeParams)          // items: chunks
AIGC_KERNEL(snake_backward, SnakeParams)         // items: chunks
AIGC_KERNEL(snake_double_backward, SnakeParams)  // items: chunks
AIGC_KERNEL(snake_reduce, SnakeParams)           // items: channels; partials -> dalpha
