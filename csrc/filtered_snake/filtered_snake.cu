// A block works on one segment of a channel at a time. It loads x, and in the backward dy and v, into lines
// of shared memory; a thread filters both lanes of z (and of g and V) at a position from them and writes what
// snake makes of them into lanes of shared memory; a thread filters an element of the result from these. Taps
// are constants of the loops in the usual case of twelve.
//
// The kernels have some local memory without spilling: sin and cos of huge numbers have their digits there.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"
#include "filtered_snake/filtered_snake.h"
#include "filtered_snake/filtered_snake_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kTwelve = 12;  // taps of the filters that have code of their own

// Blocks per multiprocessor that the registers must suffice for. Left to itself, the compiler aims for more
// and spills.
template <class T>
constexpr int kBlocks = sizeof(acc_t<T>) == 4 ? 2 : 1;

// Lines and lanes in shared memory, each of `size` elements, of which number `halo` is the segment's first;
// then the taps.
struct Tile {
  int size = 0, halo = 0;
  Reach reach{0, 0};

  __host__ __device__ static constexpr int count(int order) { return order == 0 ? 3 : order == 1 ? 4 : 7; }
};

template <class T>
size_t shared_bytes(const FilteredSnakeParams& p, const Tile& tile, int order) {
  return size_t(tile.size * Tile::count(order) + p.up_taps + p.down_taps) * sizeof(acc_t<T>);
}

template <bool kIsTwelve>
struct Filters {
  int up, down;  // taps

  __device__ LaneTaps up_lane(int lane) const { return aigc::up_lane(kIsTwelve ? kTwelve : up, lane); }
  __device__ LaneTaps down_lane(int lane) const { return aigc::down_lane(kIsTwelve ? kTwelve : down, lane); }
};

// A lane at a position of a line.
template <bool kIsTwelve, class S>
__device__ S filtered(const SharedSpan<S>& w, const LaneTaps& taps, const SharedSpan<S>& line, int at) {
  const int count = kIsTwelve ? kTwelve / 2 : int(taps.count);
  S sum = 0;
#pragma unroll 6
  for (int n = 0; n < count; ++n) sum += w[taps.tap + n * taps.step] * line[at + int(taps.first) + n];
  return sum;
}

// What an element receives from a lane.
template <bool kIsTwelve, class S>
__device__ S received(const SharedSpan<S>& w, const LaneTaps& taps, const SharedSpan<S>& lane, int at) {
  const int count = kIsTwelve ? kTwelve / 2 : int(taps.count);
  S sum = 0;
#pragma unroll 6
  for (int n = 0; n < count; ++n) sum += w[taps.tap + n * taps.step] * lane[at - int(taps.first) - n];
  return sum;
}

template <class T, int kOrder, bool kBeta, bool kIsTwelve>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    segment_kernel(const FilteredSnakeParams p, const Tile tile, int64_t items) {
  using S = acc_t<T>;
  const Filters<kIsTwelve> filters{int(p.up_taps), int(p.down_taps)};
  const auto part = [&](int i) { return dynamic_shared<S>(size_t(i * tile.size) * sizeof(S), tile.size); };
  const auto x = part(0), to_y0 = part(1), to_y1 = part(2);
  // dy and v, and the lanes of the gradient of dy; in lower orders, parts that nobody reads
  const auto dy = part(kOrder > 0 ? 3 : 0), v = part(kOrder == 2 ? 4 : 0);
  const auto to_dy0 = part(kOrder == 2 ? 5 : 0), to_dy1 = part(kOrder == 2 ? 6 : 0);
  const size_t lines = size_t(Tile::count(kOrder) * tile.size) * sizeof(S);
  const auto up = dynamic_shared<S>(lines, p.up_taps);  // 2u
  const auto down = dynamic_shared<S>(lines + size_t(p.up_taps) * sizeof(S), p.down_taps);
  for (int k = threadIdx.x; k < p.up_taps; k += kThreads) up[k] = 2 * static_cast<const S*>(p.up)[k];
  for (int k = threadIdx.x; k < p.down_taps; k += kThreads) down[k] = static_cast<const S*>(p.down)[k];

  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const ChannelSegment s = channel_segment(p, item);
    const int length = int(s.end - s.begin), halo = tile.halo;
    const int from = -int(tile.reach.before),
              to = length + int(tile.reach.after);  // the lanes that are needed
    const int64_t left = -s.begin,
                  right = p.length - s.begin;  // the ends of the signal, from the segment's first
    __syncthreads();  // for the taps, and before the last segment's lines are overwritten

    const auto read = [&](const void* signal, const SharedSpan<S>& line, int i, bool continued) {
      const int64_t at = i - halo, inside = at < left ? left : at >= right ? right - 1 : at;
      const T* element = static_cast<const T*>(signal) + s.first + (s.begin + inside) * s.stride;
      line[i] = continued || inside == at ? to_acc(*element) : S(0);
    };
    for (int i = threadIdx.x; i < length + 2 * halo; i += kThreads) {
      read(p.x, x, i, true);
      if constexpr (kOrder > 0) read(p.dy, dy, i, false);
      if constexpr (kOrder == 2) read(p.v, v, i, true);
    }
    __syncthreads();

    const S alpha = static_cast<const S*>(p.alpha)[s.channel];
    const auto of_channel = [&](const void* values) {
      return values == nullptr ? S(0) : static_cast<const S*>(values)[s.channel];
    };
    const S beta = of_channel(p.beta), w_alpha = of_channel(p.w_alpha), w_beta = of_channel(p.w_beta);
    S sums[2] = {0, 0};
    for (int q = from + int(threadIdx.x); q < to; q += kThreads) {
      const int at = q + halo;
      const bool outside = q < left || q >= right, own = q >= 0 && q < length;
#pragma unroll
      for (int lane = 0; lane < 2; ++lane) {
        const LaneTaps up_taps = filters.up_lane(lane), down_taps = filters.down_lane(lane);
        const S z = filtered<kIsTwelve>(up, up_taps, x, at);
        S to_y = 0, to_dy = 0, g = 0;
        if constexpr (kOrder > 0) {
          const auto of_dy = [&](int64_t i) { return dy[int(i - s.begin) + halo]; };
          if (lane == 0 && q == left)
            g = first_of_transposed_down<S>(down, p.down_taps, of_dy);
          else if (lane == 1 && q == right - 1)
            g = last_of_transposed_down<S>(down, p.down_taps, p.length, of_dy);
          else
            g = filtered<kIsTwelve>(down, down_taps, dy, at);
        }
        S cotangent = 0;
        if constexpr (kOrder == 2) cotangent = filtered<kIsTwelve>(up, up_taps, v, at);
        S terms[2] = {0, 0};
        if constexpr (kBeta) {
          const SnakeBetaPoint<S> point(z, alpha, beta);
          if constexpr (kOrder == 0) to_y = point.value();
          if constexpr (kOrder == 1) {
            to_y = g * point.of_z();
            terms[0] = g * point.of_alpha();
            terms[1] = g * point.of_beta();
          }
          if constexpr (kOrder == 2)
            point.second_gradients(g, cotangent, w_alpha, w_beta, to_dy, to_y, terms[0], terms[1]);
        } else {
          const SnakePoint<S> point(z, alpha);
          if constexpr (kOrder == 0) to_y = point.value();
          if constexpr (kOrder == 1) {
            to_y = g * point.of_x();
            terms[0] = g * point.of_alpha();
          }
          if constexpr (kOrder == 2) point.second_gradients(g, cotangent, w_alpha, to_dy, to_y, terms[0]);
        }
        if (own) sums[0] += terms[0], sums[1] += terms[1];
        if (kOrder > 0 && outside) to_y = 0;  // U' reads no signal there
        (lane == 0 ? to_y0 : to_y1)[at] = to_y;
        if constexpr (kOrder == 2) (lane == 0 ? to_dy0 : to_dy1)[at] = to_dy;
      }
    }
    __syncthreads();

    if (kOrder != 1 && (from < left || to > right)) {  // where D reads the continued signal
      const auto &lane0 = kOrder == 0 ? to_y0 : to_dy0, &lane1 = kOrder == 0 ? to_y1 : to_dy1;
      for (int q = from + int(threadIdx.x); q < to; q += kThreads) {
        if (q >= left && q < right) continue;
        const S end = q < left ? lane0[int(left) + halo] : lane1[int(right) - 1 + halo];
        lane0[q + halo] = end;
        lane1[q + halo] = end;
      }
      __syncthreads();
    }

    for (int i = threadIdx.x; i < length; i += kThreads) {
      const int at = i + halo;
      const int64_t element = s.first + (s.begin + i) * s.stride;
      const auto by_down = [&](const SharedSpan<S>& lane0, const SharedSpan<S>& lane1) {
        return received<kIsTwelve>(down, filters.down_lane(0), lane0, at) +
               received<kIsTwelve>(down, filters.down_lane(1), lane1, at);
      };
      if constexpr (kOrder == 0) {
        store_scalar(static_cast<T*>(p.y) + element, by_down(to_y0, to_y1));
      } else {
        const auto dz = [&](int64_t j) {
          return (j % 2 == 0 ? to_y0 : to_y1)[int(floor_div(j, 2) - s.begin) + halo];
        };
        S sum = 0;
        if (i == left && p.length == 1)
          sum = only_of_transposed_up<S>(up, p.up_taps, dz);
        else if (i == left)
          sum = first_of_transposed_up<S>(up, p.up_taps, dz);
        else if (i == right - 1)
          sum = last_of_transposed_up<S>(up, p.up_taps, p.length, dz);
        else
          sum = received<kIsTwelve>(up, filters.up_lane(0), to_y0, at) +
                received<kIsTwelve>(up, filters.up_lane(1), to_y1, at);
        store_scalar(static_cast<T*>(p.y) + element, sum);
        if constexpr (kOrder == 2)
          store_scalar(static_cast<T*>(p.grad_dy) + element, by_down(to_dy0, to_dy1));
      }
    }
    if (kOrder > 0 && p.partials != nullptr) {
#pragma unroll
      for (int i = 0; i < (kBeta ? 2 : 1); ++i) {
        const double sum = block_sum<kThreads>(sums[i]);
        if (threadIdx.x == 0) p.partials[s.partial + i * p.channels] = sum;
      }
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const FilteredSnakeParams p, int64_t channels, int64_t rows, int width) {
  const auto* partials = p.partials;
  const int64_t stride = sums_of(p) * channels;
  for (int which = 0; which < sums_of(p); ++which) {
    auto* result = static_cast<S*>(which == 0 ? p.dalpha : p.dbeta);
    sum_rows<kThreads>(
        channels, width, rows,
        [&](int64_t row, int64_t channel) { return partials[row * stride + which * channels + channel]; },
        [&](int64_t channel, double sum) { result[channel] = S(sum); });
  }
}

template <int kOrder>
void run(const FilteredSnakeParams& p, int64_t items, void* stream) {
  Tile tile;
  tile.halo = int(snake_halo(p));
  tile.size = int(min(p.segment, p.length)) + 2 * tile.halo;
  tile.reach = reach_of(p, kOrder);
  const bool twelve = p.up_taps == kTwelve && p.down_taps == kTwelve;
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const auto start = [&](auto kernel) {
      launch(kernel, grid_size(items), kThreads, shared_bytes<T>(p, tile, kOrder), stream, p, tile, items);
    };
    if (p.beta == nullptr)
      twelve ? start(segment_kernel<T, kOrder, false, true>) : start(segment_kernel<T, kOrder, false, false>);
    else
      twelve ? start(segment_kernel<T, kOrder, true, true>) : start(segment_kernel<T, kOrder, true, false>);
  });
}

}  // namespace

namespace cuda {

void filtered_snake_forward(const FilteredSnakeParams& p, int64_t items, void* stream) {
  run<0>(p, items, stream);
}
void filtered_snake_backward(const FilteredSnakeParams& p, int64_t items, void* stream) {
  run<1>(p, items, stream);
}
void filtered_snake_double_backward(const FilteredSnakeParams& p, int64_t items, void* stream) {
  run<2>(p, items, stream);
}

void filtered_snake_reduce(const FilteredSnakeParams& p, int64_t channels, void* stream) {
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    launch_sum_rows<kThreads>(reduce_kernel<S>, channels, stream, p, channels, partial_rows(p));
  });
}

}  // namespace cuda
}  // namespace aigc
