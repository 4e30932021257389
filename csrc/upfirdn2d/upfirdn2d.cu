// A block makes a tile of y from a tile of x in shared memory, which has zeros where the image is padded:
// first down the columns, then along the rows, and through shared memory again, so that global memory is read
// and written 16 bytes at a time. Adjacent threads have adjacent columns (NCHW) or channels (NHWC); a block
// takes several planes if they are small. Factors and taps are compile-time constants in the common cases.
//
// Each block reads the filter from global memory once. A two-dimensional filter that is an outer product, as
// those of setup_filter are, is separated into its factors. Any other is applied as it is.
//
// For filters that are too large for shared memory, each output has a thread, which reads global memory.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"
#include "upfirdn2d/upfirdn2d.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kRows = 4;            // of y, that a thread computes at a time in the first pass
constexpr int kTileOutputs = 2048;  // aimed at for a tile
constexpr int kMostChannels = 32;   // of a tile, for channels-last
constexpr int kMostProduct = 256;   // taps of a filter that is checked for being an outer product
constexpr size_t kMostShared = 96 << 10;

template <class T>
constexpr int kPack = 16 / int(sizeof(T));

// Sizes of a tile: powers of two, except for those of its part of x.
struct Tile {
  int planes = 1, rows = kRows, columns = 1, channels = 1;
  int in_rows = 0, in_columns = 0;
  int64_t plane_tiles = 0, row_tiles = 0, column_tiles = 0, channel_tiles = 0;

  __host__ __device__ int64_t inputs() const { return int64_t(planes) * in_rows * in_columns * channels; }
  __host__ __device__ int64_t outputs() const { return int64_t(planes) * rows * columns * channels; }
  __host__ __device__ int64_t between() const { return int64_t(planes) * rows * in_columns * channels; }
  // The first holds x, and later y; the second the rows between the passes, or y if there is only one.
  __host__ __device__ int64_t first_buffer() const { return max(inputs(), outputs()); }
  __host__ __device__ int64_t second_buffer() const { return max(between(), outputs()); }
};

int64_t weights(const Upfirdn2dParams& p) {
  return p.x_axis.taps + p.y_axis.taps + p.x_axis.taps * p.y_axis.taps;
}

template <class T>
size_t shared_bytes(const Upfirdn2dParams& p, const Tile& tile) {
  return size_t(tile.first_buffer() + tile.second_buffer() + weights(p)) * sizeof(acc_t<T>);
}

template <class T>
Tile make_tile(const Upfirdn2dParams& p) {
  Tile tile;
  const auto measure = [&] {
    const auto inputs = [](const FirAxis& axis, int64_t outputs) {
      return int(min(((outputs - 1) * axis.down + axis.taps - 1) / axis.up + 2, 1 << 20));
    };
    tile.in_rows = inputs(p.y_axis, tile.rows);
    tile.in_columns = inputs(p.x_axis, tile.columns);
    if (!p.channels_last)  // it begins at a multiple of 16 bytes, up to kPack - 1 columns earlier
      tile.in_columns = int(round_up(tile.in_columns + kPack<T> - 1, kPack<T>));
  };
  if (p.channels_last)
    tile.channels = kPack<T> * power_of_two(ceil_div(p.channels, kPack<T>), kMostChannels / kPack<T>);
  const int least_columns = p.channels_last ? 1 : kPack<T>;  // as many as are stored at once
  tile.columns = max(least_columns, power_of_two(p.x_axis.out, p.channels_last ? 8 : 64));
  tile.rows = max(kRows, power_of_two(p.y_axis.out, p.channels_last ? 8 : 32));
  if (!p.channels_last)
    tile.planes = power_of_two(p.batch * p.channels, int(max(1, kTileOutputs / (tile.columns * tile.rows))));
  for (measure(); shared_bytes<T>(p, tile) > kSharedBytesWithoutAsking; measure()) {
    if (tile.planes > 1)
      tile.planes /= 2;
    else if (tile.channels > kPack<T>)
      tile.channels /= 2;
    else if (tile.columns > max(tile.rows, least_columns))
      tile.columns /= 2;
    else if (tile.rows > kRows)
      tile.rows /= 2;
    else if (tile.columns > least_columns)
      tile.columns /= 2;
    else
      break;
  }
  tile.plane_tiles = ceil_div(fir_planes(p), tile.planes);
  tile.row_tiles = ceil_div(p.y_axis.out, tile.rows);
  tile.column_tiles = ceil_div(p.x_axis.out, tile.columns);
  tile.channel_tiles = p.channels_last ? ceil_div(p.channels, tile.channels) : 1;
  return tile;
}

// An axis whose factors and taps may be compile-time constants.
template <int kUp, int kDown, int kTaps>
struct Axis {
  int up_, down_, taps_, pad_;  // pad: the origin of the tile's first output, within the tile

  __device__ int up() const { return kUp > 0 ? kUp : up_; }
  __device__ int down() const { return kDown > 0 ? kDown : down_; }
  __device__ int taps() const { return kTaps > 0 ? kTaps : taps_; }
  // The first pixel of the tile that output o of the tile reads, and its tap. Nothing is negative here.
  __device__ int first(int o) const { return (o * down() + pad_ + up() - 1) / up(); }
  __device__ int tap(int o) const { return first(o) * up() - (o * down() + pad_); }
  __device__ int count(int o) const {
    if constexpr (kTaps > 0 && kTaps % (kUp > 0 ? kUp : 1) == 0) return kTaps / kUp;
    return (taps() - tap(o) + up() - 1) / up();
  }
};

// The taps in the order in which they multiply pixels: w_y and w_x, or w for both axes. Returns whether they
// are separate. Every thread of the block must call it.
template <class S>
__device__ bool load_filter(const Upfirdn2dParams& p, const SharedSpan<S>& w_x, const SharedSpan<S>& w_y,
                            const SharedSpan<S>& w) {
  const S* f = static_cast<const S*>(p.f);
  const int taps_x = int(p.x_axis.taps), taps_y = int(p.y_axis.taps), taps = taps_x * taps_y;
  const auto at = [&](int k, int n) { return p.flip_filter ? k : n - 1 - k; };
  const S gain = S(p.gain);
  if (f == nullptr || p.separable) {
    for (int k = threadIdx.x; k < taps_x; k += kThreads) {
      const S tap = f == nullptr ? S(1) : __ldg(f + at(k, taps_x));
      w_x[k] = tap;
      w_y[k] = gain * tap;
    }
    __syncthreads();
    return true;
  }
  for (int k = threadIdx.x; k < taps; k += kThreads) w[k] = gain * __ldg(f + at(k, taps));
  __syncthreads();
  const int pivot = taps > kMostProduct ? -1 : outer_product_pivot<S>(w, taps_y, taps_x);  // by every thread
  const bool separate = pivot >= 0;
  if (separate) {
    for (int k = threadIdx.x; k < taps_x; k += kThreads) w_x[k] = w[pivot / taps_x * taps_x + k] / w[pivot];
    for (int k = threadIdx.x; k < taps_y; k += kThreads) w_y[k] = w[k * taps_x + pivot % taps_x];
    __syncthreads();
  }
  return separate;
}

template <class T, int kUp, int kDown, int kTaps>
__global__ void __launch_bounds__(kThreads, 3)
    tile_kernel(const Upfirdn2dParams p, const Tile tile, int64_t tiles) {
  using S = acc_t<T>;
  constexpr int N = kPack<T>;
  const auto first_buffer = dynamic_shared<S>(0, tile.first_buffer());
  const auto second_buffer = dynamic_shared<S>(tile.first_buffer() * sizeof(S), tile.second_buffer());
  const size_t buffers = size_t(tile.first_buffer() + tile.second_buffer()) * sizeof(S);
  const int taps_x = int(p.x_axis.taps), taps_y = int(p.y_axis.taps);
  const auto w_x = dynamic_shared<S>(buffers, taps_x);
  const auto w_y = dynamic_shared<S>(buffers + taps_x * sizeof(S), taps_y);
  const auto w = dynamic_shared<S>(buffers + (taps_x + taps_y) * sizeof(S), int64_t(taps_x) * taps_y);
  const bool separate = load_filter<S>(p, w_x, w_y, w);

  const int64_t channels = pixel_stride(p), planes = fir_planes(p);
  const T* x = static_cast<const T*>(p.x);
  T* y = static_cast<T*>(p.y);
  Axis<kUp, kDown, kTaps> x_axis{int(p.x_axis.up), int(p.x_axis.down), taps_x, 0};
  Axis<kUp, kDown, kTaps> y_axis{int(p.y_axis.up), int(p.y_axis.down), taps_y, 0};
  const int pixels = tile.in_columns * tile.channels;  // elements of a row
  const int width = tile.columns * tile.channels;

  // Runs f(plane, row, column, channel) for the first of every N neighbouring elements of a tile.
  const auto for_packs = [&](int rows, int columns, auto&& f) {
    const int length = columns * tile.channels / N, count = tile.planes * rows * length;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const int line = i / length, at = (i - line * length) * N;
      f(line / rows, line % rows, at / tile.channels, at % tile.channels, line * length * N + at);
    }
  };

  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    int64_t rest = item;
    const int64_t channel0 = rest % tile.channel_tiles * tile.channels;
    rest /= tile.channel_tiles;
    const int64_t ox0 = rest % tile.column_tiles * tile.columns;
    rest /= tile.column_tiles;
    const int64_t oy0 = rest % tile.row_tiles * tile.rows, plane0 = rest / tile.row_tiles * tile.planes;
    // The tile's part of x begins with the pixel at or before the origin of the first output.
    int64_t ix0 = floor_div(p.x_axis.origin(ox0), p.x_axis.up);
    const int64_t iy0 = floor_div(p.y_axis.origin(oy0), p.y_axis.up);
    if (!p.channels_last) ix0 = floor_div(ix0, N) * N;
    x_axis.pad_ = int(p.x_axis.origin(ox0) - ix0 * p.x_axis.up);
    y_axis.pad_ = int(p.y_axis.origin(oy0) - iy0 * p.y_axis.up);

    const auto load_pack = [&](int plane, int row, int column, int channel, int at) {
      const int64_t ix = ix0 + column, iy = iy0 + row, c = channel0 + channel;
      S values[N] = {};
      if (plane0 + plane < planes && iy >= 0 && iy < p.y_axis.in && ix >= 0 && ix < p.x_axis.in) {
        const int64_t from = (((plane0 + plane) * p.y_axis.in + iy) * p.x_axis.in + ix) * channels + c;
        load<N>(x + from, p.channels_last ? channels - c : p.x_axis.in - ix, values);
      }
#pragma unroll
      for (int j = 0; j < N; ++j) first_buffer[at + j] = values[j];
    };
    for_packs(tile.in_rows, tile.in_columns, load_pack);
    __syncthreads();

    const SharedSpan<S> result = separate ? first_buffer : second_buffer;  // a reference would be in memory
    if (separate) {
      const int groups = tile.planes * (tile.rows / kRows);
      for (int i = threadIdx.x; i < groups * pixels; i += kThreads) {
        const int group = i / pixels, column = i - group * pixels, plane = group / (tile.rows / kRows);
        const int row = group % (tile.rows / kRows) * kRows;
        const int from = plane * tile.in_rows * pixels + column;
        S sum[kRows] = {};
        if constexpr (kUp == 1) {  // an input is read once for all rows
          const int top = y_axis.first(row);
#pragma unroll
          for (int j = 0; j < (kRows - 1) * kDown + kTaps; ++j) {
            const S v = first_buffer[from + (top + j) * pixels];
#pragma unroll
            for (int r = 0; r < kRows; ++r)
              if (j >= r * kDown && j < r * kDown + kTaps) sum[r] += w_y[j - r * kDown] * v;
          }
        } else {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            const int top = y_axis.first(row + r), tap = y_axis.tap(row + r), count = y_axis.count(row + r);
            for (int t = 0; t < count; ++t)
              sum[r] += w_y[tap + t * y_axis.up()] * first_buffer[from + (top + t) * pixels];
          }
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          second_buffer[(plane * tile.rows + row + r) * pixels + column] = sum[r];
      }
      __syncthreads();
    }

    const int lines = tile.planes * tile.rows;
    for (int i = threadIdx.x; i < lines * width; i += kThreads) {
      const int line = i / width, column = (i - line * width) / tile.channels, channel = i % tile.channels;
      const int first = x_axis.first(column), tap = x_axis.tap(column), count = x_axis.count(column);
      S sum = 0;
      const auto add_row = [&](const SharedSpan<S>& rows, int row, const SharedSpan<S>& taps, int first_tap) {
        const int from = row * pixels + first * tile.channels + channel;
#pragma unroll
        for (int t = 0; t < count; ++t)
          sum += taps[first_tap + tap + t * x_axis.up()] * rows[from + t * tile.channels];
      };
      if (separate) {
        add_row(second_buffer, line, w_x, 0);
      } else {
        const int plane = line / tile.rows, row = line % tile.rows, top = y_axis.first(row);
        for (int t = 0; t < y_axis.count(row); ++t)
          add_row(first_buffer, plane * tile.in_rows + top + t, w,
                  (y_axis.tap(row) + t * y_axis.up()) * x_axis.taps());
      }
      result[i] = sum;
    }
    __syncthreads();

    const auto store_pack = [&](int plane, int row, int column, int channel, int at) {
      const int64_t ox = ox0 + column, oy = oy0 + row, c = channel0 + channel;
      if (plane0 + plane >= planes || oy >= p.y_axis.out || ox >= p.x_axis.out || c >= channels) return;
      S values[N];
#pragma unroll
      for (int j = 0; j < N; ++j) values[j] = result[at + j];
      const int64_t to = (((plane0 + plane) * p.y_axis.out + oy) * p.x_axis.out + ox) * channels + c;
      store<N>(y + to, p.channels_last ? channels - c : p.x_axis.out - ox, values);
    };
    for_packs(tile.rows, tile.columns, store_pack);
    __syncthreads();  // before the next tile is loaded
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) any_kernel(const Upfirdn2dParams p, int64_t outputs) {
  using S = acc_t<T>;
  const int64_t channels = pixel_stride(p);
  const FirAxis &x_axis = p.x_axis, &y_axis = p.y_axis;
  const S* f = static_cast<const S*>(p.f);
  const T* x = static_cast<const T*>(p.x);
  const auto at = [&](int64_t k, int64_t n) { return p.flip_filter ? k : n - 1 - k; };
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < outputs;
       i += int64_t(gridDim.x) * kThreads) {
    const int64_t channel = i % channels, ox = i / channels % x_axis.out;
    const int64_t oy = i / channels / x_axis.out % y_axis.out, plane = i / channels / x_axis.out / y_axis.out;
    const int64_t left = x_axis.first(ox), top = y_axis.first(oy);
    S sum = 0;
    for (int64_t ty = max(0, -top); ty < min(y_axis.count(oy), y_axis.in - top); ++ty) {
      const int64_t ky = y_axis.tap(oy) + ty * y_axis.up;
      S of_row = 0;
      for (int64_t tx = max(0, -left); tx < min(x_axis.count(ox), x_axis.in - left); ++tx) {
        const int64_t kx = x_axis.tap(ox) + tx * x_axis.up;
        const S v = to_acc(x[((plane * y_axis.in + top + ty) * x_axis.in + left + tx) * channels + channel]);
        S tap = 1;
        if (f != nullptr)
          tap =
              p.separable ? f[at(kx, x_axis.taps)] : f[at(ky * x_axis.taps + kx, x_axis.taps * y_axis.taps)];
        of_row += tap * v;
      }
      sum += (p.separable ? f[at(ky, y_axis.taps)] : S(1)) * of_row;
    }
    store_scalar(static_cast<T*>(p.y) + i, S(p.gain) * sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const Upfirdn2dParams p, int64_t items) {
  const FirAxis &x_axis = p.x_axis, &y_axis = p.y_axis;
  const int64_t bands = gradient_bands(p), pixel = pixel_stride(p);
  const int64_t taps = x_axis.taps * y_axis.taps;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t plane = item / bands, begin = item % bands * kGradientRows;
    const T* x = static_cast<const T*>(p.x) + plane_at(p, plane, y_axis.in * x_axis.in);
    const T* dy = static_cast<const T*>(p.dy) + plane_at(p, plane, y_axis.out * x_axis.out);
    const int64_t outputs = (min(begin + kGradientRows, y_axis.out) - begin) * x_axis.out;
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t ky = k / x_axis.taps, kx = k % x_axis.taps;
      double sum = 0;
      for (int64_t i = threadIdx.x; i < outputs; i += kThreads) {
        const int64_t oy = begin + i / x_axis.out, ox = i % x_axis.out;
        const int64_t zy = y_axis.origin(oy) + ky, zx = x_axis.origin(ox) + kx;
        if (zy < 0 || zx < 0 || zy % y_axis.up != 0 || zx % x_axis.up != 0) continue;
        const int64_t iy = zy / y_axis.up, ix = zx / x_axis.up;
        if (iy < y_axis.in && ix < x_axis.in)
          sum +=
              double(to_acc(dy[(oy * x_axis.out + ox) * pixel])) * to_acc(x[(iy * x_axis.in + ix) * pixel]);
      }
      sum = block_sum<kThreads>(sum);
      if (threadIdx.x == 0) p.partials[item * taps + k] = sum;
    }
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads) reduce_kernel(const Upfirdn2dParams p, int64_t items, int width) {
  const int64_t taps = p.x_axis.taps * p.y_axis.taps;
  sum_rows<kThreads>(
      taps, width, items, [&](int64_t item, int64_t k) { return p.partials[item * taps + k]; },
      [&](int64_t k, double sum) {
        static_cast<S*>(p.y)[p.flip_filter ? k : taps - 1 - k] = S(p.gain * sum);
      });
}

template <class T>
void run(const Upfirdn2dParams& p, void* stream) {
  const FirAxis &x = p.x_axis, &y = p.y_axis;
  const Tile tile = make_tile<T>(p);
  const size_t bytes = shared_bytes<T>(p, tile);
  // Within a tile, positions are ints.
  if (bytes > kMostShared || x.up * x.down > 1 << 20 || y.up * y.down > 1 << 20) {
    const int64_t outputs = p.batch * p.channels * y.out * x.out;
    launch(any_kernel<T>, grid_size(ceil_div(outputs, kThreads)), kThreads, 0, stream, p, outputs);
    return;
  }
  const int64_t tiles = tile.plane_tiles * tile.row_tiles * tile.column_tiles * tile.channel_tiles;
  const auto run_tiles = [&](auto kernel) {
    launch(kernel, grid_size(tiles), kThreads, bytes, stream, p, tile, tiles);
  };
  const bool same = x.up == y.up && x.down == y.down && x.taps == y.taps;
  const auto is = [&](int up, int down, int taps) {
    return same && x.up == up && x.down == down && x.taps == taps;
  };
  if (is(1, 1, 4)) return run_tiles(tile_kernel<T, 1, 1, 4>);
  if (is(2, 1, 4)) return run_tiles(tile_kernel<T, 2, 1, 4>);
  if (is(1, 2, 4)) return run_tiles(tile_kernel<T, 1, 2, 4>);
  if (is(1, 1, 12)) return run_tiles(tile_kernel<T, 1, 1, 12>);
  if (is(2, 1, 12)) return run_tiles(tile_kernel<T, 2, 1, 12>);
  if (is(1, 2, 12)) return run_tiles(tile_kernel<T, 1, 2, 12>);
  run_tiles(tile_kernel<T, 0, 0, 0>);
}

}  // namespace

namespace cuda {

void upfirdn2d_forward(const Upfirdn2dParams& p, int64_t, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { run<T>(p, stream); });
}

void upfirdn2d_filter_partials(const Upfirdn2dParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(gradient_kernel<T>, grid_size(items), kThreads, 0, stream, p, items);
  });
}

void upfirdn2d_filter_reduce(const Upfirdn2dParams& p, int64_t taps, void* stream) {
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    launch_sum_rows<kThreads>(reduce_kernel<S>, taps, stream, p, gradient_items(p));
  });
}

}  // namespace cuda
}  // namespace aigc
