// snake (snake/snake.h) at twice the rate of a signal, between two low-pass filters, for each channel:
//
//     z = U x       the signal between and at its samples, 2L of them
//     t = f(z)      z + sin^2(alpha z) / beta, with beta = alpha if there is none of its own
//     y = D t       every other sample of the filtered t
//
// With signals continued by their first and last value (x, and t too), Ku taps u and Kd taps d:
//     z_j = 2 sum_k u_k x_i over i with 2i = j + pu - k,   pu = floor((Ku - 1) / 2)
//     y_i = sum_k d_k t_j,            j = 2i + pd - k,     pd = floor(Kd / 2)
// pu and pd centre the filters: y is in time with x if both numbers of taps are even, or both odd.
//
// z and t never reach memory: nothing is saved for the backward, which filters x again. With V = U v, v the
// cotangent of dx, a and b those of dalpha and dbeta, and f' and its like at z:
//     g = D' dy,   dx = U' (g f'),   dalpha = sum g f_alpha,   dbeta = sum g f_beta
//     d(dy) = D (V f' + a f_alpha + b f_beta)
//     d(x) = U' (g (V f'' + a f'_alpha + b f'_beta))
//     d(alpha) = sum g (V f'_alpha + a f_alphaalpha + b f_alphabeta),   d(beta) likewise
//
// Traffic (e = element size): 2e, 3e, 5e for each element of x.
//
// z is worked on as two lanes, z_2q and z_2q+1, neither of which a filter reads with gaps. A segment of a
// channel is what an item works on. Beside its own positions, it computes those of its neighbours that its
// outputs need.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct FilteredSnakeParams {
  DType dtype = DType::float32;
  bool channels_last = false;  // a channel's elements are `channels` apart
  int64_t samples = 0, channels = 0, length = 0;
  int64_t segment = 1;  // elements of a channel, the last segment may have fewer
  int64_t up_taps = 1, down_taps = 1;
  // All of x's shape:
  const void* x = nullptr;
  const void* dy = nullptr;
  const void* v = nullptr;  // second order: the cotangent of dx
  void* y = nullptr;        // y; dx; second order: the gradient of x
  void* grad_dy = nullptr;  // second order
  // Of acc_t:
  const void* up = nullptr;       // `up_taps` elements
  const void* down = nullptr;     // `down_taps` elements
  const void* alpha = nullptr;    // `channels` elements
  const void* beta = nullptr;     // `channels` elements, or null: alpha is in its place
  const void* w_alpha = nullptr;  // second order: the cotangent of dalpha, or null for zeros
  const void* w_beta = nullptr;
  double* partials = nullptr;  // [samples][segments][alpha, beta][channels]; null: no such gradient is wanted
  void* dalpha = nullptr;
  void* dbeta = nullptr;
};

constexpr int64_t kMostSnakeTaps = 128;  // what a segment of a GPU has shared memory for

AIGC_INLINE int64_t segments(const FilteredSnakeParams& p) { return ceil_div(p.length, p.segment); }
AIGC_INLINE int64_t segment_count(const FilteredSnakeParams& p) {
  return p.samples * p.channels * segments(p);
}
AIGC_INLINE int64_t sums_of(const FilteredSnakeParams& p) { return p.beta == nullptr ? 1 : 2; }
AIGC_INLINE int64_t partial_rows(const FilteredSnakeParams& p) { return p.samples * segments(p); }

// Where a segment lies.
struct ChannelSegment {
  int64_t channel, begin, end;  // of the positions along the channel
  int64_t first, stride;        // its elements: first + position * stride
  int64_t partial;              // the place of its first sum; the next one is `channels` further
};
AIGC_INLINE ChannelSegment channel_segment(const FilteredSnakeParams& p, int64_t item) {
  const int64_t plane = item / segments(p), part = item - plane * segments(p);
  const int64_t sample = plane / p.channels, channel = plane - sample * p.channels;
  const int64_t begin = part * p.segment;
  return {channel,
          begin,
          min(begin + p.segment, p.length),
          p.channels_last ? sample * p.length * p.channels + channel : plane * p.length,
          p.channels_last ? p.channels : 1,
          (sample * segments(p) + part) * sums_of(p) * p.channels + channel};
}

// One lane of U or D': lane q is the sum over n < count of tap (tap + n * step) times element q + first + n.
// Transposed, for U' and D: element i receives from lane q = i - first - n.
struct LaneTaps {
  int64_t first, count, tap, step;
};
AIGC_INLINE LaneTaps up_lane(int64_t taps, int lane) {
  const int64_t at = lane + (taps - 1) / 2, odd = at % 2, count = (taps - odd + 1) / 2;
  return {at / 2 - count + 1, count, odd + 2 * (count - 1), -2};
}
AIGC_INLINE LaneTaps down_lane(int64_t taps, int lane) {
  const int64_t odd = (lane + taps / 2) % 2;
  return {(odd + lane - taps / 2) / 2, (taps - odd + 1) / 2, odd, 2};
}

// How far the lanes that an element receives from lie before and after it, and what the filters read beside
// them: never more than this.
AIGC_INLINE int64_t snake_halo(const FilteredSnakeParams& p) { return (p.up_taps + p.down_taps) / 2 + 2; }
// The lanes that U' (of `up`) or D receive from: from `before` ahead of an element to `after` behind it.
struct Reach {
  int64_t before, after;
};
AIGC_INLINE Reach reach_of(int64_t taps, bool up) {
  Reach reach{0, 0};
  for (int lane = 0; lane < 2; ++lane) {
    const LaneTaps t = up ? up_lane(taps, lane) : down_lane(taps, lane);
    reach.before = max(reach.before, t.first + t.count - 1);
    reach.after = max(reach.after, -t.first);
  }
  return reach;
}
AIGC_INLINE Reach reach_of(const FilteredSnakeParams& p, int order) {
  const Reach down = reach_of(p.down_taps, false), up = reach_of(p.up_taps, true);
  if (order == 0) return down;
  if (order == 1) return up;
  return {max(down.before, up.before), max(down.after, up.after)};
}

}  // namespace aigc

AIGC_KERNEL(filtered_snake_forward, FilteredSnakeParams)          // items: segment_count
AIGC_KERNEL(filtered_snake_backward, FilteredSnakeParams)         // items: segment_count
AIGC_KERNEL(filtered_snake_double_backward, FilteredSnakeParams)  // items: segment_count
AIGC_KERNEL(filtered_snake_reduce, FilteredSnakeParams)  // items: channels; partials -> dalpha, dbeta
