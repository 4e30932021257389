// A leaky ReLU between two separable resampling filters (upfirdn2d/upfirdn2d.h), for each plane of a batch:
//
//     z = first(x + b)                     up more pixels along both axes
//     t = clamp(D(z) * z, -limit, limit)   D(z) = gain where z > 0, else gain * slope
//     y = second(t)                        every down-th pixel of the filtered image
//
// z and t never reach memory. Two bits of each pixel are saved: z > 0, and |t| <= limit if there is a limit.
//
// With these bits given, D is constant and the map is linear in x and b:
//     y = second(D * first(x + b)),   D = gain or gain * slope, 0 where clamped.
// Its transpose has the same form, with the transposes of the filters in each other's place:
//     dx = first'(D * second'(dy)),   db = sum of dx,
// so the two maps are each other's derivatives to every order.
//
// Traffic: x once, y once, and 2 bits for each pixel of z.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"
#include "upfirdn2d/upfirdn2d.h"

namespace aigc {

struct FilteredLreluParams {
  DType dtype = DType::float32;
  bool channels_last = false;                    // x and y: a plane's pixels are `channels` elements apart
  bool flip_first = false, flip_second = false;  // as flip_filter of upfirdn2d
  int64_t planes = 0, channels = 1;              // planes: batch * channels
  FirAxis first_x, first_y, second_x, second_y;  // first.out is second.in; first.down and second.up are 1
  double first_gain = 1, second_gain = 1;        // of both axes together
  double gain = 1, slope = 0, clamp = -1;        // clamp < 0: off

  const void* x = nullptr;
  const void* b = nullptr;      // `channels` elements, or null
  const void* first = nullptr;  // first_x.taps elements of acc_t, used along both axes, or null for 1
  const void* second = nullptr;
  void* y = nullptr;
  uint8_t* mask = nullptr;  // null: not wanted
  bool masked = false;      // the mask is given, not written
  double* sums = nullptr;   // [lrelu_items], of y; null: not wanted
  void* sum = nullptr;      // [channels], of y: the result of the reduction
};

// The limits of all kernels: the tiles of a GPU must fit into its shared memory.
constexpr int64_t kMostFactor = 4, kMostTaps = 24;

// A column of z is q * phases + phase, with phases a multiple of both factors, so that all columns of a phase
// have the same taps at the same distances. The mask has one bit for each column, in runs of the columns of
// one phase, [bit planes][planes][rows][phases][run]. A run is a multiple of 16 bits.
AIGC_INLINE int64_t lrelu_phases(const FilteredLreluParams& p) {
  FirAxis factors;
  factors.up = p.first_x.up;
  factors.down = p.second_x.down;
  return factors.up / factors.gcd() * factors.down;
}
AIGC_INLINE int64_t mask_run_bytes(const FilteredLreluParams& p) {
  const int64_t phases = lrelu_phases(p);
  return ceil_div(ceil_div(p.first_x.out, phases), 16) * 2;
}
AIGC_INLINE int64_t mask_row_bytes(const FilteredLreluParams& p) {
  return lrelu_phases(p) * mask_run_bytes(p);
}
AIGC_INLINE int64_t mask_plane_bytes(const FilteredLreluParams& p) {
  return p.planes * p.first_y.out * mask_row_bytes(p);
}
AIGC_INLINE int64_t mask_bytes(const FilteredLreluParams& p) {
  return (p.clamp >= 0 ? 2 : 1) * mask_plane_bytes(p);
}

// An item on the CPU: a band of rows of one plane of y.
AIGC_INLINE int64_t lrelu_bands(const FilteredLreluParams& p) {
  const int64_t width = p.first_x.out > 0 ? p.first_x.out : 1, by_width = 65536 / width;
  const int64_t rows = by_width < 16 ? 16 : by_width > 64 ? 64 : by_width;
  return ceil_div(p.second_y.out, rows);
}
AIGC_INLINE int64_t lrelu_items(const FilteredLreluParams& p) { return p.planes * lrelu_bands(p); }

}  // namespace aigc

AIGC_KERNEL(filtered_lrelu_run, FilteredLreluParams)  // items: lrelu_items
AIGC_KERNEL(filtered_lrelu_sum, FilteredLreluParams)  // y or sums -> sum, an item for each channel
