// Resampling by a finite impulse response: along each axis up - 1 zeros are inserted after every pixel, the
// result is padded (or cropped), convolved with the filter, and every down-th pixel of that is kept:
//
//     y[o] = gain * sum over k < taps of w[k] * z[o * down - pad + k],   z[i * up] = x[i], else 0
//
// with w the filter reversed (a convolution), or the filter itself (flip_filter). All kernels here compute
// its polyphase form. Only every up-th k meets a pixel, so that with first = ceil((o * down - pad) / up) and
// tap = first * up - (o * down - pad), which takes up / gcd(up, down) values in turn,
//
//     y[o] = gain * sum over t of w[tap + t * up] * x[first + t].
//
// The map is linear in x. Its transpose has the same form: up and down swapped, the filter reversed, and
// pad' = taps - 1 - pad. It is also linear in a two-dimensional f, with the gradient
//     df[ky, kx] = gain * sum over n, c, o of dy[o] * z[oy * down_y - pad_y + ky, ox * down_x - pad_x + kx]
// (by the indices of w), whose derivatives are upfirdn2d again: the set is closed.
//
// Traffic: x once, y once.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

// One axis of the map.
struct FirAxis {
  int64_t up = 1, down = 1, pad = 0, taps = 1, in = 0, out = 0;

  AIGC_INLINE int64_t origin(int64_t o) const { return o * down - pad; }
  // The first pixel that output o reads, which may be outside of the image, and its tap.
  AIGC_INLINE int64_t first(int64_t o) const { return ceil_div(origin(o), up); }
  AIGC_INLINE int64_t tap(int64_t o) const { return first(o) * up - origin(o); }
  // How many it reads.
  AIGC_INLINE int64_t count(int64_t o) const { return ceil_div(taps - tap(o), up); }
  AIGC_INLINE int64_t gcd() const {
    int64_t a = up, b = down;
    while (b != 0) {
      const int64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

// Where a plane of `pixels` pixels begins, and the distance between its pixels.
template <class Params>
AIGC_INLINE int64_t plane_at(const Params& p, int64_t plane, int64_t pixels) {
  if (!p.channels_last) return plane * pixels;
  return plane / p.channels * p.channels * pixels + plane % p.channels;
}
template <class Params>
AIGC_INLINE int64_t pixel_stride(const Params& p) {
  return p.channels_last ? p.channels : 1;
}

struct Upfirdn2dParams {
  DType dtype = DType::float32;
  bool channels_last = false;  // of x, y and dy
  bool separable = false;      // f is [taps] and used along both axes; else [y.taps, x.taps], or null for 1
  bool flip_filter = false;
  int64_t batch = 0, channels = 0;
  FirAxis x_axis, y_axis;
  double gain = 1;
  const void* x = nullptr;
  const void* f = nullptr;  // acc_t
  const void* dy = nullptr;
  void* y = nullptr;           // df, in acc_t, of the gradient
  double* partials = nullptr;  // [gradient_items, y.taps * x.taps]
};

// The index of the largest tap of a two-dimensional filter, if every tap is one in the largest's column times
// one in its row, divided by it, up to the rounding errors of an outer product in S; else -1, also for NaN.
template <class S, class Taps, class Int>
AIGC_INLINE Int outer_product_pivot(const Taps& w, Int taps_y, Int taps_x) {
  const auto magnitude = [](S v) { return v < 0 ? -v : v; };
  constexpr S kRoundings = sizeof(S) == 4 ? S(0x1p-22) : S(0x1p-51);
  Int pivot = 0;
  for (Int k = 1; k < taps_y * taps_x; ++k)
    if (magnitude(w[k]) > magnitude(w[pivot])) pivot = k;
  const Int row = pivot / taps_x, column = pivot % taps_x;
  for (Int a = 0; a < taps_y; ++a)
    for (Int b = 0; b < taps_x; ++b) {
      const S tap = w[a * taps_x + b], product = w[a * taps_x + column] * (w[row * taps_x + b] / w[pivot]);
      if (!(magnitude(product - tap) <= kRoundings * magnitude(tap))) return -1;
    }
  return pivot;
}

// An item of the forward: this many rows of a plane of y or (channels last) of an image. Kernels may begin up
// to kMostShift rows before the first.
constexpr int64_t kFirRows = 16, kMostShift = 3;
AIGC_INLINE int64_t fir_planes(const Upfirdn2dParams& p) {
  return p.channels_last ? p.batch : p.batch * p.channels;
}
AIGC_INLINE int64_t fir_bands(const Upfirdn2dParams& p) {
  return ceil_div(p.y_axis.out + kMostShift, kFirRows);
}

// An item of the gradient's first step: this many rows of a plane of dy.
constexpr int64_t kGradientRows = 64;
AIGC_INLINE int64_t gradient_bands(const Upfirdn2dParams& p) { return ceil_div(p.y_axis.out, kGradientRows); }
AIGC_INLINE int64_t gradient_items(const Upfirdn2dParams& p) {
  return p.batch * p.channels * gradient_bands(p);
}

}  // namespace aigc

AIGC_KERNEL(upfirdn2d_forward, Upfirdn2dParams)          // y
AIGC_KERNEL(upfirdn2d_filter_partials, Upfirdn2dParams)  // partials; f and y are not used
AIGC_KERNEL(upfirdn2d_filter_reduce, Upfirdn2dParams)    // y = df, an item for each tap
