// A block makes a tile of y. It loads x into shared memory, with zeros where the image is padded, and applies
// the first filter along the rows, the first filter down the columns and the leaky ReLU, the second filter
// down the columns, and the second filter along the rows, which gives y. Two buffers take turns. Adjacent
// threads have adjacent columns of a phase, eight of which share a byte of the mask. Factors and taps are
// compile-time constants in the common cases.
//
// Everything a launch needs is among its arguments, so launches on several streams do not interfere.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"
#include "filtered_lrelu/filtered_lrelu.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
// Of shared memory. kMostTaps and kMostFactor keep every tile within what there is.
constexpr size_t kWantedBytes = 64 << 10;
constexpr int kPerInput = 6;  // taps per output of the filters that have specialized kernels

// Sizes of a tile of y, and of the largest parts of z (phase by phase, `run` columns each) and x that it
// needs.
struct Tile {
  int rows = 16, columns = 0, phases = 1;
  int z_rows = 0, run = 0, lead = 0;  // lead: columns of z, from one of phase 0 on, before the first output's
  int x_rows = 0, x_columns = 0;
  int64_t row_tiles = 0, column_tiles = 0;

  __host__ __device__ int z_width() const { return phases * run; }
  __host__ __device__ int64_t first_buffer() const {  // x, later z
    return max(int64_t(x_rows) * x_columns, int64_t(z_rows) * z_width());
  }
  __host__ __device__ int64_t second_buffer() const {  // between the passes of either filter
    return int64_t(x_rows > rows ? x_rows : rows) * z_width();
  }
};

template <class T>
size_t shared_bytes(const FilteredLreluParams& p, const Tile& tile) {
  const int64_t taps = 2 * (p.first_x.taps + p.second_x.taps);
  return size_t(tile.first_buffer() + tile.second_buffer() + taps) * sizeof(acc_t<T>);
}

template <class T>
Tile make_tile(const FilteredLreluParams& p) {
  const int64_t up = p.first_x.up, down = p.second_x.down;
  Tile tile;
  tile.phases = int(lrelu_phases(p));
  const int whole_bytes = 8 * tile.phases, least = whole_bytes / int(down);  // columns of z, and of y
  tile.columns = least > 32 ? least : 32 / least * least;
  const int64_t start = -p.second_x.pad;  // 0 where the mask is written, so that tiles begin with whole bytes
  tile.lead = int(start - floor_div(start, tile.phases) * tile.phases);
  const auto measure = [&] {
    const auto reach = [&](int outputs, int64_t taps) { return outputs * down - 1 + taps; };
    tile.z_rows = int(reach(tile.rows, p.second_y.taps));
    tile.run = int(ceil_div(tile.lead + reach(tile.columns, p.second_x.taps), whole_bytes)) * 8;
    tile.x_rows = int((tile.z_rows + p.first_y.taps - 2) / up + 2);
    tile.x_columns = int((tile.z_width() + p.first_x.taps - 2) / up + 2);
  };
  for (measure(); shared_bytes<T>(p, tile) > kWantedBytes; measure()) {
    if (tile.rows > 8)
      tile.rows /= 2;
    else if (tile.columns > least)
      tile.columns -= least;
    else if (tile.rows > 1)
      tile.rows /= 2;
    else
      break;
  }
  tile.row_tiles = ceil_div(p.second_y.out, tile.rows);
  tile.column_tiles = ceil_div(p.second_x.out, tile.columns);
  return tile;
}

// Factors and taps of both filters, which may be compile-time constants.
template <int kUp, int kDown>
struct Factors {
  int up_, down_, first_taps_, second_taps_;

  __device__ int up() const { return kUp > 0 ? kUp : up_; }
  __device__ int down() const { return kUp > 0 ? kDown : down_; }
  __device__ int first_taps() const { return kUp > 0 ? kPerInput * kUp : first_taps_; }
  __device__ int second_taps() const { return kUp > 0 ? kPerInput * kDown : second_taps_; }
};

// The first filter at the pixel of z whose taps begin `origin` positions after the tile's first pixel,
// counting inserted zeros. value(i) is pixel i of the tile.
template <int kUp, int kDown, class S, class F>
__device__ S first_filter(const Factors<kUp, kDown>& f, const SharedSpan<S>& w, int origin, F&& value) {
  const int first = (origin + f.up() - 1) / f.up(), tap = first * f.up() - origin;
  S sum = 0;
  if constexpr (kUp > 0) {
#pragma unroll
    for (int t = 0; t < kPerInput; ++t) sum += w[tap + t * kUp] * value(first + t);
  } else {
    const int count = (f.first_taps() - tap + f.up() - 1) / f.up();
    for (int t = 0; t < count; ++t) sum += w[tap + t * f.up()] * value(first + t);
  }
  return sum;
}

template <class T, int kUp, int kDown>
__global__ void __launch_bounds__(kThreads, 3)
    tile_kernel(const FilteredLreluParams p, const Tile tile, int64_t tiles) {
  using S = acc_t<T>;
  const Factors<kUp, kDown> f{int(p.first_x.up), int(p.second_x.down), int(p.first_x.taps),
                              int(p.second_x.taps)};
  constexpr int kPhases = kUp > kDown ? kUp : kDown;  // of the factors that are constants
  const int phases = kUp > 0 ? kPhases : tile.phases, run = tile.run, z_width = phases * run;
  const int64_t first_buffer = tile.first_buffer(), second_buffer = tile.second_buffer();
  const auto pixels = dynamic_shared<S>(0, first_buffer);  // of x, later of z
  const auto between = dynamic_shared<S>(first_buffer * sizeof(S), second_buffer);
  const size_t buffers = size_t(first_buffer + second_buffer) * sizeof(S);
  const auto w_first = dynamic_shared<S>(buffers, f.first_taps());
  const auto w_first_down = dynamic_shared<S>(buffers + f.first_taps() * sizeof(S), f.first_taps());
  const auto w_second = dynamic_shared<S>(buffers + 2 * f.first_taps() * sizeof(S), f.second_taps());
  const auto w_second_down =
      dynamic_shared<S>(buffers + (2 * f.first_taps() + f.second_taps()) * sizeof(S), f.second_taps());

  const auto load_taps = [](const void* filter, int taps, bool flip, double gain, const SharedSpan<S>& along,
                            const SharedSpan<S>& down) {
    for (int k = threadIdx.x; k < taps; k += kThreads) {
      const S w = filter == nullptr ? S(1) : static_cast<const S*>(filter)[flip ? k : taps - 1 - k];
      along[k] = w;
      down[k] = S(gain) * w;
    }
  };
  load_taps(p.first, f.first_taps(), p.flip_first, p.first_gain, w_first, w_first_down);
  load_taps(p.second, f.second_taps(), p.flip_second, p.second_gain, w_second, w_second_down);

  const S positive = S(p.gain), negative = S(p.gain * p.slope), limit = S(p.clamp);
  const bool clamped = p.clamp >= 0, writes = p.mask != nullptr && !p.masked;
  const int64_t pixel = pixel_stride(p), run_bytes = mask_run_bytes(p), plane_bytes = mask_plane_bytes(p);
  const FirAxis &fx = p.first_x, &fy = p.first_y, &sx = p.second_x, &sy = p.second_y;

  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    const int64_t column_tile = item % tile.column_tiles,
                  row_tile = item / tile.column_tiles % tile.row_tiles;
    const int64_t plane = item / tile.column_tiles / tile.row_tiles;
    const bool last_row = row_tile == tile.row_tiles - 1, last_column = column_tile == tile.column_tiles - 1;
    const int64_t ox0 = column_tile * tile.columns, oy0 = row_tile * tile.rows;
    const int rows = int(min(tile.rows, sy.out - oy0)), columns = int(min(tile.columns, sx.out - ox0));
    // The first row and column of z in this tile. The last tiles write the rest of the mask.
    const int64_t zx0 = sx.origin(ox0) - tile.lead, zy0 = sy.origin(oy0), q0 = zx0 / phases;
    const int needed = (rows - 1) * f.down() + f.second_taps();
    const int z_rows = !writes ? needed : int(last_row ? sy.in - zy0 : max(needed, rows * f.down()));
    const int64_t x0 = floor_div(fx.origin(zx0), f.up());
    const int64_t y0 = floor_div(fy.origin(zy0), f.up());
    const int origin_x = int(fx.origin(zx0) - x0 * f.up()), origin_y = int(fy.origin(zy0) - y0 * f.up());
    const int x_rows = (origin_y + z_rows - 1 + f.first_taps() - 1) / f.up() + 1;

    __syncthreads();  // for the taps, and before the last tile's buffers are overwritten
    const T* x = static_cast<const T*>(p.x) + plane_at(p, plane, fy.in * fx.in);
    const S addend = p.b == nullptr ? S(0) : to_acc(static_cast<const T*>(p.b)[plane % p.channels]);
    for (int i = threadIdx.x; i < x_rows * tile.x_columns; i += kThreads) {
      const int64_t row = y0 + i / tile.x_columns, column = x0 + i % tile.x_columns;
      const bool inside = row >= 0 && row < fy.in && column >= 0 && column < fx.in;
      pixels[i] = inside ? to_acc(x[(row * fx.in + column) * pixel]) + addend : S(0);
    }
    __syncthreads();

    for (int i = threadIdx.x; i < x_rows * z_width; i += kThreads) {
      const int row = i / z_width, rest = i - row * z_width, phase = rest / run, q = rest - phase * run;
      const int from = row * tile.x_columns;
      between[i] =
          first_filter(f, w_first, q * phases + phase + origin_x, [&](int at) { return pixels[from + at]; });
    }
    __syncthreads();

    // In whole warps, since eight threads combine their bits into a byte. `count` is a multiple of 8.
    uint8_t* mask = p.mask == nullptr ? nullptr : p.mask + plane * fy.out * phases * run_bytes;
    const int64_t keep_rows = last_row ? z_rows : tile.rows * f.down();
    const int64_t keep_q = last_column ? run : tile.columns * f.down() / phases;
    const int count = z_rows * z_width, lane = int(threadIdx.x) % 32;
    for (int base = int(threadIdx.x) - lane; base < count; base += kThreads) {
      const int i = base + lane, row = i / z_width, rest = i - row * z_width, phase = rest / run;
      const int q = rest - phase * run;
      const int64_t zx = (q0 + q) * phases + phase, zy = zy0 + row;
      const int64_t byte = (zy * phases + phase) * run_bytes + floor_div(q0 + q, 8), bit = (q0 + q) & 7;
      bool branch = false, within = false;
      if (i < count && zx >= 0 && zx < fx.out && zy >= 0 && zy < fy.out) {
        const S z = first_filter(f, w_first_down, row + origin_y,
                                 [&](int at) { return between[at * z_width + rest]; });
        branch = p.masked ? mask[byte] >> bit & 1 : !(z <= 0);
        S t = z * (branch ? positive : negative);
        if (clamped && p.masked) {
          if (!(mask[plane_bytes + byte] >> bit & 1)) t = 0;
        } else if (clamped) {
          within = t <= limit && t >= -limit;
          t = t > limit ? limit : t < -limit ? -limit : t;
        }
        pixels[i] = t;
      } else if (i < count) {
        pixels[i] = 0;
      }
      if (writes) {
        const unsigned branches = __ballot_sync(0xffffffffu, branch);
        const unsigned withins = __ballot_sync(0xffffffffu, within);
        if (i < count && bit == 0 && row < keep_rows && q < keep_q && (q0 + q) / 8 < run_bytes) {
          mask[byte] = uint8_t(branches >> lane);
          if (clamped) mask[plane_bytes + byte] = uint8_t(withins >> lane);
        }
      }
    }
    if (writes && last_column) {  // the unused end of each run
      const int64_t done = (q0 + run) / 8, rest = run_bytes - done;
      for (int64_t i = threadIdx.x; i < rest * keep_rows * phases; i += kThreads) {
        const int64_t byte = (zy0 * phases + i / rest) * run_bytes + done + i % rest;
        mask[byte] = 0;
        if (clamped) mask[plane_bytes + byte] = 0;
      }
    }
    __syncthreads();

    for (int i = threadIdx.x; i < rows * z_width; i += kThreads) {
      const int row = i / z_width, rest = i - row * z_width;
      S sum = 0;
#pragma unroll 12
      for (int k = 0; k < f.second_taps(); ++k)
        sum += w_second_down[k] * pixels[(row * f.down() + k) * z_width + rest];
      between[i] = sum;
    }
    __syncthreads();

    T* y = static_cast<T*>(p.y) + plane_at(p, plane, sy.out * sx.out);
    for (int i = threadIdx.x; i < rows * columns; i += kThreads) {
      const int row = i / columns, column = i - row * columns, m = tile.lead + column * f.down();
      S sum = 0;
#pragma unroll 12
      for (int k = 0; k < f.second_taps(); ++k)
        sum += w_second[k] * between[row * z_width + (m + k) % phases * run + (m + k) / phases];
      store_scalar(y + ((oy0 + row) * sx.out + ox0 + column) * pixel, sum);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const FilteredLreluParams p, int64_t channels) {
  const int64_t pixels = p.second_y.out * p.second_x.out, planes = p.planes / p.channels;
  for (int64_t channel = blockIdx.x; channel < channels; channel += gridDim.x) {
    double sum = 0;
    for (int64_t n = 0; n < planes; ++n) {
      const T* y = static_cast<const T*>(p.y) + plane_at(p, n * p.channels + channel, pixels);
      for (int64_t i = threadIdx.x; i < pixels; i += kThreads) sum += to_acc(y[i * pixel_stride(p)]);
    }
    sum = block_sum<kThreads>(sum);
    if (threadIdx.x == 0) store_scalar(static_cast<T*>(p.sum) + channel, acc_t<T>(sum));
  }
}

}  // namespace

namespace cuda {

void filtered_lrelu_run(const FilteredLreluParams& p, int64_t, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const Tile tile = make_tile<T>(p);
    const int64_t tiles = p.planes * tile.row_tiles * tile.column_tiles;
    const auto run = [&](auto kernel) {
      launch(kernel, grid_size(tiles), kThreads, shared_bytes<T>(p, tile), stream, p, tile, tiles);
    };
    const auto is = [&](int up, int down) {
      return p.first_x.up == up && p.second_x.down == down && p.first_x.taps == kPerInput * up &&
             p.second_x.taps == kPerInput * down;
    };
    if (is(2, 2)) return run(tile_kernel<T, 2, 2>);
    if (is(4, 2)) return run(tile_kernel<T, 4, 2>);
    if (is(2, 4)) return run(tile_kernel<T, 2, 4>);
    run(tile_kernel<T, 0, 0>);
  });
}

void filtered_lrelu_sum(const FilteredLreluParams& p, int64_t channels, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(sum_kernel<T>, grid_size(channels), kThreads, 0, stream, p, channels);
  });
}

}  // namespace cuda
}  // namespace aigc
