// vector_quantize: a block takes kTile rows and goes through the codes, kTile at a time and kDepth numbers of them
// at a time in shared memory; a thread computes 4 x 4 scores and keeps the best and the second best of its rows'.
// The 16 threads of a row then agree on the best. Rows whose best two are too near are left to the whole block,
// which goes through all codes once more, a code to a thread.
//
// code_sums: a block takes a part of the rows and some columns; a thread adds up one of these, row after row, in
// sums of its own in global memory. A second kernel adds up the parts.
#include "core/cuda_launch.h"
#include "core/cuda_shared.h"
#include "core/cuda_vec.h"
#include "vector_quantize/vector_quantize_formula.h"

namespace aigc {
namespace {

constexpr int kThreads = 256;
constexpr int kTile = 64, kSide = kTile / 4;  // rows, codes; threads along a side of a tile
constexpr int kDepth = 16;
static_assert(kSide * kSide == kThreads && kTile == kGroup);

__device__ inline int64_t first_of(const VectorQuantizeParams& p, int64_t row) {
  const int64_t outer = row / p.inner;
  return outer * p.depth * p.inner + (row - outer * p.inner);
}

template <class S>
__device__ inline S infinity() {
  return S(__builtin_inf());
}

template <class S>
__device__ inline bool is_finite(S x) {
  return x - x == 0;
}

// A thread has a code. The panel is transposed, so that a row of it has the same number of all codes of a group.
template <class T>
__global__ void __launch_bounds__(kGroup) prepare_kernel(const VectorQuantizeParams p, int64_t groups) {
  using S = acc_t<T>;
  const auto* codes = static_cast<const T*>(p.codes);
  auto* panel = static_cast<S*>(p.panel);
  auto* norms = static_cast<S*>(p.negative_half_norms);
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x) {
    const int64_t k = group * kGroup + int(threadIdx.x);
    S* column = panel + group * kGroup * p.depth + int(threadIdx.x);
    double square = k < p.num_codes ? 0 : infinity<double>();
    for (int64_t d = 0; d < p.depth; ++d) {
      const S number = k < p.num_codes ? load_scalar(codes + k * p.depth + d) : S(0);
      column[d * kGroup] = number;
      square += double(number) * double(number);
    }
    norms[k] = S(-square / 2);
    if (!is_finite(norms[k]))  // of which nothing may come into a sum
      for (int64_t d = 0; d < p.depth; ++d) column[d * kGroup] = 0;
  }
}

// Of all codes: the first with a NaN (or -1), and the most negative half norm.
template <class S>
__device__ void survey_norms(const VectorQuantizeParams& p, int64_t& first_nan, S& most_negative) {
  __shared__ SharedArray<int64_t, kThreads> nans;
  __shared__ SharedArray<S, kThreads> least;
  const auto* norms = static_cast<const S*>(p.negative_half_norms);
  int64_t nan = p.num_codes;
  S negative = 0;
  for (int64_t k = threadIdx.x; k < p.num_codes; k += kThreads) {
    if (norms[k] != norms[k] && nan == p.num_codes) nan = k;
    if (norms[k] < negative) negative = norms[k];
  }
  nans[threadIdx.x] = nan;
  least[threadIdx.x] = negative;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (int(threadIdx.x) < step) {
      if (nans[threadIdx.x + step] < nans[threadIdx.x]) nans[threadIdx.x] = nans[threadIdx.x + step];
      if (least[threadIdx.x + step] < least[threadIdx.x]) least[threadIdx.x] = least[threadIdx.x + step];
    }
    __syncthreads();
  }
  first_nan = nans[0] < p.num_codes ? nans[0] : -1;
  most_negative = least[0];
  __syncthreads();
}

template <class S>
using TileArray = SharedArray<SharedArray<S, kTile + 4>, kDepth>;  // the padding: fewer bank conflicts

// kDepth numbers of kTile rows, and zeros where there are none.
template <class T>
__device__ void load_rows(const VectorQuantizeParams& p, int64_t base, int64_t depth,
                          TileArray<acc_t<T>>& tile) {
  const auto* x = static_cast<const T*>(p.x);
  for (int i = int(threadIdx.x); i < kTile * kDepth; i += kThreads) {
    // Neighbouring threads read neighbouring elements: numbers of a row, or rows.
    const int d = p.inner == 1 ? i % kDepth : i / kTile, r = p.inner == 1 ? i / kDepth : i % kTile;
    const int64_t row = base + r;
    const bool there = row < rows_of(p) && depth + d < p.depth;
    tile[d][r] = there ? load_scalar(x + first_of(p, row) + (depth + d) * p.inner) : acc_t<T>(0);
  }
}

template <class S>
__device__ void load_codes(const VectorQuantizeParams& p, int64_t group, int64_t depth, TileArray<S>& tile) {
  const S* panel = static_cast<const S*>(p.panel) + group * kGroup * p.depth;
  for (int i = int(threadIdx.x); i < kTile * kDepth; i += kThreads) {
    const int d = i / kTile, k = i % kTile;
    tile[d][k] = depth + d < p.depth ? panel[(depth + d) * kGroup + k] : S(0);
  }
}

template <class S>
struct Leader {
  S best, second;
  int64_t code;

  __device__ void add(S score, int64_t k) {
    if (score > best) {
      second = best;
      best = score;
      code = k;
    } else if (score > second) {
      second = score;
    }
  }
};

// The nearest code of a row by differences in float64, of those whose score is not below the limit.
template <class T>
__device__ int64_t compare_again(const VectorQuantizeParams& p, int64_t row, acc_t<T> limit) {
  using S = acc_t<T>;
  __shared__ SharedArray<double, kThreads> distances;
  __shared__ SharedArray<int64_t, kThreads> codes_of;
  const T* x = static_cast<const T*>(p.x) + first_of(p, row);
  const auto* codes = static_cast<const T*>(p.codes);
  const auto* panel = static_cast<const S*>(p.panel);
  const auto* norms = static_cast<const S*>(p.negative_half_norms);
  double least = infinity<double>();
  int64_t nearest = p.num_codes;
  for (int64_t k = threadIdx.x; k < p.num_codes; k += kThreads) {
    const S* column = panel + k / kGroup * kGroup * p.depth + k % kGroup;
    S score = norms[k];
    for (int64_t d = 0; d < p.depth; ++d) score += load_scalar(x + d * p.inner) * column[d * kGroup];
    if (score < limit) continue;
    double distance = 0;
    for (int64_t d = 0; d < p.depth; ++d) {
      const double difference =
          double(load_scalar(x + d * p.inner)) - double(load_scalar(codes + k * p.depth + d));
      distance += difference * difference;
    }
    if (distance < least) {
      least = distance;
      nearest = k;
    }
  }
  distances[threadIdx.x] = least;
  codes_of[threadIdx.x] = nearest;
  __syncthreads();
  for (int step = kThreads / 2; step > 0; step /= 2) {
    if (int(threadIdx.x) < step) {
      const int other = int(threadIdx.x) + step;
      const bool nearer = distances[other] < distances[threadIdx.x];
      const bool lower =
          distances[other] == distances[threadIdx.x] && codes_of[other] < codes_of[threadIdx.x];
      if (nearer || lower) {
        distances[threadIdx.x] = distances[other];
        codes_of[threadIdx.x] = codes_of[other];
      }
    }
    __syncthreads();
  }
  nearest = codes_of[0] < p.num_codes ? codes_of[0] : 0;  // all are infinitely far
  __syncthreads();
  return nearest;
}

// Writes the code of each of `count` rows from `base` on.
template <class T, class Index>
__device__ void write_codes(const VectorQuantizeParams& p, int64_t base, int64_t count, Index&& index_of) {
  const auto* codes = static_cast<const T*>(p.codes);
  auto* y = static_cast<T*>(p.y);
  T nan;
  store_scalar(&nan, acc_t<T>(__builtin_nan("")));
  for (int64_t i = threadIdx.x; i < count * p.depth; i += kThreads) {
    const int64_t d = p.inner == 1 ? i % p.depth : i / count, r = p.inner == 1 ? i / p.depth : i % count;
    const int64_t k = index_of(r);
    const bool known = k >= 0 && k < p.num_codes;
    y[first_of(p, base + r) + d * p.inner] = known ? codes[k * p.depth + d] : nan;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) quantize_kernel(const VectorQuantizeParams p, int64_t tiles) {
  using S = acc_t<T>;
  __shared__ SharedArray<SharedArray<S, kTile + 4>, kDepth> rows, codes;  // TileArray<S>
  __shared__ SharedArray<int64_t, kTile> found;
  __shared__ SharedArray<S, kTile> limits;  // of rows to compare again; else NaN
  const auto* norms = static_cast<const S*>(p.negative_half_norms);
  const int column = int(threadIdx.x) % kSide, line = int(threadIdx.x) / kSide;
  int64_t first_nan;
  S most_negative;
  survey_norms(p, first_nan, most_negative);
  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    const int64_t base = item * kTile;
    Leader<S> leaders[4];
    S squares[4] = {}, zeros[4] = {};
#pragma unroll
    for (int r = 0; r < 4; ++r) leaders[r] = {-infinity<S>(), -infinity<S>(), 0};
    for (int64_t group = 0; group < code_groups(p); ++group) {
      S scores[4][4];
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int k = 0; k < 4; ++k) scores[r][k] = norms[group * kGroup + column * 4 + k];
      for (int64_t depth = 0; depth < p.depth; depth += kDepth) {
        load_rows<T>(p, base, depth, rows);
        load_codes<S>(p, group, depth, codes);
        __syncthreads();
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
          S number[4], code[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) number[r] = rows[d][line * 4 + r];
#pragma unroll
          for (int k = 0; k < 4; ++k) code[k] = codes[d][column * 4 + k];
#pragma unroll
          for (int r = 0; r < 4; ++r) {
#pragma unroll
            for (int k = 0; k < 4; ++k) scores[r][k] += number[r] * code[k];
            if (group == 0) {
              squares[r] += number[r] * number[r];
              zeros[r] += number[r] * S(0);
            }
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int k = 0; k < 4; ++k) leaders[r].add(scores[r][k], group * kGroup + column * 4 + k);
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      Leader<S>& own = leaders[r];
      for (int step = 1; step < kSide; step *= 2) {
        Leader<S> other;
        other.best = __shfl_xor_sync(0xffffffffu, own.best, step);
        other.second = __shfl_xor_sync(0xffffffffu, own.second, step);
        other.code = __shfl_xor_sync(0xffffffffu, own.code, step);
        own.add(other.best, other.code);
        if (other.second > own.second) own.second = other.second;
      }
      if (column == 0) {
        const S margin = score_margin(squares[r], most_negative, p.depth);
        const S limit = is_finite(margin) ? own.best - margin : -infinity<S>();
        const bool decided = is_finite(margin) && own.second < limit;
        const bool usable = zeros[r] == 0 && first_nan < 0;
        found[line * 4 + r] = zeros[r] != 0 ? -1 : first_nan >= 0 ? first_nan : own.code;
        limits[line * 4 + r] = usable && !decided ? limit : S(__builtin_nan(""));
      }
    }
    __syncthreads();
    const int64_t count = min(int64_t(kTile), rows_of(p) - base);
    for (int64_t r = 0; r < count; ++r) {
      const S limit = limits[r];
      if (limit != limit) continue;
      const int64_t nearest = compare_again<T>(p, base + r, limit);
      if (threadIdx.x == 0) found[r] = nearest;
    }
    __syncthreads();
    if (int(threadIdx.x) < count) p.nearest[base + int(threadIdx.x)] = found[threadIdx.x];
    write_codes<T>(p, base, count, [&](int64_t r) { return found[r]; });
    __syncthreads();  // before the next rows
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) rows_kernel(const VectorQuantizeParams p, int64_t tiles) {
  for (int64_t item = blockIdx.x; item < tiles; item += gridDim.x) {
    const int64_t base = item * kTile;
    write_codes<T>(p, base, min(int64_t(kTile), rows_of(p) - base),
                   [&](int64_t r) { return p.indices[base + r]; });
  }
}

constexpr int kSumThreads = 32;

// Blocks along y have the parts. A thread has a column.
template <class T>
__global__ void __launch_bounds__(kSumThreads) partial_sums_kernel(const VectorQuantizeParams p) {
  const auto* x = static_cast<const T*>(p.x);
  const int64_t parts = part_count(p), size = ceil_div(rows_of(p), max(parts, 1));
  for (int64_t part = blockIdx.y; part < parts; part += gridDim.y) {
    double* sums = p.partial + part * p.num_codes * p.depth;
    const Range rows = part_of(rows_of(p), size, part);
    for (int64_t d = int64_t(blockIdx.x) * kSumThreads + int(threadIdx.x); d < p.depth;
         d += int64_t(gridDim.x) * kSumThreads) {
      for (int64_t k = 0; k < p.num_codes; ++k) sums[k * p.depth + d] = 0;
      for (int64_t row = rows.begin; row < rows.end; ++row) {
        const int64_t k = p.indices[row];
        if (k >= 0 && k < p.num_codes)
          sums[k * p.depth + d] += double(load_scalar(x + first_of(p, row) + d * p.inner));
      }
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) join_sums_kernel(const VectorQuantizeParams p) {
  const int64_t size = p.num_codes * p.depth, parts = part_count(p);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + int(threadIdx.x); i < size;
       i += int64_t(gridDim.x) * kThreads) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += p.partial[part * size + i];
    store_scalar(static_cast<T*>(p.sums) + i, acc_t<T>(sum));
  }
}

}  // namespace

namespace cuda {

void vector_quantize_prepare(const VectorQuantizeParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(prepare_kernel<T>, grid_size(items), kGroup, 0, stream, p, items);
  });
}

void vector_quantize(const VectorQuantizeParams& p, int64_t, void* stream) {
  const int64_t tiles = ceil_div(rows_of(p), kTile);
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    launch(quantize_kernel<T>, grid_size(tiles), kThreads, 0, stream, p, tiles);
  });
}

void code_rows(const VectorQuantizeParams& p, int64_t, void* stream) {
  const int64_t tiles = ceil_div(rows_of(p), kTile);
  dispatch_dtype(
      p.dtype, [&]<class T>(T*) { launch(rows_kernel<T>, grid_size(tiles), kThreads, 0, stream, p, tiles); });
}

void code_sums(const VectorQuantizeParams& p, int64_t, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const dim3 grid(grid_size(ceil_div(p.depth, kSumThreads)), grid_rows(part_count(p)));
    if (part_count(p) > 0) launch(partial_sums_kernel<T>, grid, kSumThreads, 0, stream, p);
    launch(join_sums_kernel<T>, grid_size(ceil_div(p.num_codes * p.depth, kThreads)), kThreads, 0, stream, p);
  });
}

}  // namespace cuda
}  // namespace aigc
