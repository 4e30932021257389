// A few threads go along a run, a part of one channel of a sample (NCHW); or a block takes some pixels of a
// sample (NHWC), and a thread eight neighbouring channels of them, whose factors it keeps in registers. All
// units are at the same stage: what one stage has read, the next finds in the L2 cache if it is large enough.
#include "core/cuda_launch.h"
#include "core/cuda_reduce.h"
#include "core/cuda_vec.h"
#include "group_norm_act/group_norm_formula.h"

namespace aigc {
namespace {

using Stage = GroupNormStage;

constexpr int kThreads = 256;
constexpr int kColumns = kThreads * 8;

constexpr bool is_sums(Stage stage) {
  return stage == Stage::gradient_sums || stage == Stage::cotangent_sums || stage == Stage::second_sums;
}

// Blocks per multiprocessor that the registers must suffice for. Eight channels have up to 88 factors.
template <class T, Stage kStage>
constexpr int kBlocks =
    sizeof(acc_t<T>) == 4 && kStage != Stage::second_sums && kStage != Stage::double_backward ? 2 : 1;

// The factors of a channel of a sample, or of eight neighbouring channels.
template <class S, int N>
struct Factors {
  S value[kFactors][N];

  __device__ Factors(const GroupNormParams& p, int64_t sample, int64_t channel) {
    const S* at = static_cast<const S*>(p.factors) + sample * kFactors * p.channels + channel;
#pragma unroll
    for (int f = 0; f < kFactors; ++f)
#pragma unroll
      for (int j = 0; j < N; ++j) value[f][j] = channel + j < p.channels ? at[f * p.channels + j] : S(0);
  }
  __device__ S get(int f, int j) const { return value[f][N == 1 ? 0 : j]; }
};

// ---- elements -------------------------------------------------------------------------------------------

// The eight elements at `at`, of which n are there.
template <class T>
struct Eight {
  using S = acc_t<T>;
  S x[8], residual[8] = {}, dy[8], v[8], v_residual[8] = {};

  template <Stage kStage>
  __device__ void read(const GroupNormParams& p, int64_t at, int64_t n) {
    load<8>(static_cast<const T*>(p.x) + at, n, x);
    if constexpr (kStage != Stage::cotangent_sums) {
      if (p.residual) load<8>(static_cast<const T*>(p.residual) + at, n, residual);
    }
    if constexpr (kStage != Stage::cotangent_sums && kStage != Stage::forward)
      load<8>(static_cast<const T*>(p.dy) + at, n, dy);
    if constexpr (kStage == Stage::cotangent_sums || kStage == Stage::second_sums ||
                  kStage == Stage::double_backward)
      load<8>(static_cast<const T*>(p.v) + at, n, v);
    if constexpr (kStage == Stage::second_sums || kStage == Stage::double_backward) {
      if (p.v_residual) load<8>(static_cast<const T*>(p.v_residual) + at, n, v_residual);
    }
  }
};

// What element j adds to the sums.
template <class T, Act A, Stage kStage, int N>
__device__ void add(const GroupNormParams& p, const Factors<acc_t<T>, N>& factors, const Eight<T>& e, int j,
                    acc_t<T> (&out)[sums_of(kStage)]) {
  using S = acc_t<T>;
  const auto f = [&](GroupNormFactor factor) { return factors.get(factor, j); };
  if constexpr (kStage == Stage::cotangent_sums) {
    out[0] = e.v[j];
    out[1] = e.v[j] * (e.x[j] - f(kMean));
  } else {
    const GroupNormElement<A, S> element(ClampedActivation<A, S>(p), f, e.x[j], e.residual[j]);
    const S dz = element.dz(e.dy[j]);
    out[0] = dz;
    out[1] = dz * element.centred;
    if constexpr (kStage == Stage::second_sums) {
      S of_dy, of_z;
      element.second(f, e.dy[j], e.v[j], e.v_residual[j], of_dy, of_z);
      out[2] = dz * e.v[j];
      out[3] = of_z;
      out[4] = of_z * element.centred;
    }
  }
}

template <class T, Act A, Stage kStage, int N>
__device__ void write(const GroupNormParams& p, const Factors<acc_t<T>, N>& factors, int64_t at, int64_t n) {
  using S = acc_t<T>;
  Eight<T> e;
  e.template read<kStage>(p, at, n);
  S y[8], of_dy[8], of_residual[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const auto f = [&](GroupNormFactor factor) { return factors.get(factor, j); };
    const GroupNormElement<A, S> element(ClampedActivation<A, S>(p), f, e.x[j], e.residual[j]);
    if constexpr (kStage == Stage::forward) {
      y[j] = element.value();
    } else {
      const S dz = element.dz(e.dy[j]);
      if constexpr (kStage == Stage::backward) {
        y[j] = element.dx(f, dz);
        of_residual[j] = dz;
      } else {
        element.second(f, e.dy[j], e.v[j], e.v_residual[j], of_dy[j], of_residual[j]);
        y[j] = element.grad_x(f, dz, e.v[j], of_residual[j]);
      }
    }
  }
  store<8>(static_cast<T*>(p.y) + at, n, y);
  if constexpr (kStage != Stage::forward) {
    if (p.dresidual) store<8>(static_cast<T*>(p.dresidual) + at, n, of_residual);
  }
  if constexpr (kStage == Stage::double_backward) store<8>(static_cast<T*>(p.grad_dy) + at, n, of_dy);
}

// `width` neighbouring threads (a power of two) share a run.
template <class T, Act A, Stage kStage>
__global__ void __launch_bounds__(kThreads, (kBlocks<T, kStage>))
    runs_kernel(const GroupNormParams p, int64_t items, int width) {
  using S = acc_t<T>;
  const int lane = int(threadIdx.x) % width, group = int(threadIdx.x) / width, groups = kThreads / width;
  const int64_t parts = p.parts;
  for (int64_t base = int64_t(blockIdx.x) * groups; base < items; base += int64_t(gridDim.x) * groups) {
    const int64_t item = base + group, index = item / parts, part = item - index * parts;
    const int64_t sample = index / p.channels, channel = index - sample * p.channels;
    const Range range = part_of(p.inner, p.inner_per_part, part);
    const bool is_there = item < items;
    if constexpr (is_sums(kStage)) {
      constexpr int kSums = sums_of(kStage);
      double totals[kSums] = {};
      if (is_there) {
        const Factors<S, 1> factors(p, sample, channel);
        for (int64_t i = range.begin + lane * 8; i < range.end; i += width * 8) {
          Eight<T> e;
          e.template read<kStage>(p, index * p.inner + i, range.end - i);
          S eight[kSums] = {};
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            S own[kSums];
            add<T, A, kStage>(p, factors, e, j, own);
#pragma unroll
            for (int s = 0; s < kSums; ++s)
              if (i + j < range.end) eight[s] += own[s];
          }
#pragma unroll
          for (int s = 0; s < kSums; ++s) totals[s] += eight[s];
        }
      }
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
        const double total = group_sum<kThreads>(totals[s], width);
        if (is_there && lane == 0)
          p.partials[((sample * parts + part) * p.sums + s) * p.channels + channel] = total;
      }
    } else if (is_there) {
      const Factors<S, 1> factors(p, sample, channel);
      for (int64_t i = range.begin + lane * 8; i < range.end; i += width * 8)
        write<T, A, kStage>(p, factors, index * p.inner + i, range.end - i);
    }
  }
}

// f(pixel of the sample) for a thread's pixels of a part.
template <class F>
__device__ void for_pixels(const Range& part, int64_t channel, int64_t channels, int width, F&& f) {
  if (channel >= channels) return;
  const int group = int(threadIdx.x) / width, groups = kThreads / width;
  for (int64_t i = part.begin + group; i < part.end; i += groups) f(i);
}

// Where column_sums puts its results.
struct Partials {
  double* out;
  double count;  // what to divide by
  __device__ void operator()(int c, double sum) const { out[c] = sum / count; }
};

template <class S>
__device__ void sum_columns(const S (&own)[8], int width, int columns, const Partials& partials) {
  double wide[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) wide[j] = own[j];
  column_sums<kThreads>(wide, width, columns, columns, partials);
}

template <class T, Act A, Stage kStage>
__global__ void __launch_bounds__(kThreads, (kBlocks<T, kStage>))
    columns_kernel(const GroupNormParams p, int64_t items, int width) {
  using S = acc_t<T>;
  const int64_t parts = p.parts;
  for (int64_t item = blockIdx.x; item < items; item += gridDim.x) {
    const int64_t sample = item / parts;
    const Range part = part_of(p.inner, p.inner_per_part, item - sample * parts);
    for (int64_t left = 0; left < p.channels; left += kColumns) {
      const int64_t channel = left + int64_t(threadIdx.x) % width * 8, n = p.channels - channel;
      const Factors<S, 8> factors(p, sample, channel);
      const auto element_at = [&](int64_t pixel) {
        return (sample * p.inner + pixel) * p.channels + channel;
      };
      if constexpr (is_sums(kStage)) {
        constexpr int kSums = sums_of(kStage);
        S sums[kSums][8] = {};  // acc_t will do: a thread has few pixels of a part
        for_pixels(part, channel, p.channels, width, [&](int64_t pixel) {
          Eight<T> e;
          e.template read<kStage>(p, element_at(pixel), n);
#pragma unroll
          for (int j = 0; j < 8; ++j) {
            S own[kSums];
            add<T, A, kStage>(p, factors, e, j, own);
#pragma unroll
            for (int s = 0; s < kSums; ++s) sums[s][j] += own[s];
          }
        });
        const int columns = int(min(p.channels - left, kColumns));
        double* partials = p.partials + item * p.sums * p.channels + left;
#pragma unroll
        for (int s = 0; s < kSums; ++s)
          sum_columns(sums[s], width, columns, Partials{partials + s * p.channels, 1});
      } else {
        for_pixels(part, channel, p.channels, width,
                   [&](int64_t pixel) { write<T, A, kStage>(p, factors, element_at(pixel), n); });
      }
    }
  }
}

// ---- statistics -----------------------------------------------------------------------------------------

template <class T>
__device__ void statistics_of_columns(const GroupNormParams& p, int64_t item, int width) {
  using S = acc_t<T>;
  const int64_t parts = p.parts, sample = item / parts;
  const Range part = part_of(p.inner, p.inner_per_part, item - sample * parts);
  double* partials = p.partials + item * 2 * p.channels;
  for (int64_t left = 0; left < p.channels; left += kColumns) {
    const int64_t channel = left + int64_t(threadIdx.x) % width * 8, n = p.channels - channel;
    const int columns = int(min(p.channels - left, kColumns));
    const auto read = [&](int64_t pixel, S(&v)[8]) {
      load<8>(static_cast<const T*>(p.x) + (sample * p.inner + pixel) * p.channels + channel, n, v);
    };
    S sums[8] = {};  // acc_t will do: a thread has few pixels of a part
    for_pixels(part, channel, p.channels, width, [&](int64_t pixel) {
      S v[8];
      read(pixel, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) sums[j] += v[j];
    });
    sum_columns(sums, width, columns, Partials{partials + left, double(part.size())});
    S mean[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) mean[j] = j < n ? S(partials[channel + j]) : S(0);
    S squares[8] = {};
    for_pixels(part, channel, p.channels, width, [&](int64_t pixel) {
      S v[8];
      read(pixel, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) squares[j] += (v[j] - mean[j]) * (v[j] - mean[j]);
    });
    sum_columns(squares, width, columns, Partials{partials + p.channels + left, 1});
  }
}

// `width` neighbouring threads share a part of a group, of which all are in the same loop.
template <class T>
__device__ void statistics_of_run(const GroupNormParams& p, int64_t item, bool is_there, int width) {
  using S = acc_t<T>;
  const int lane = int(threadIdx.x) % width;
  const int64_t parts = statistics_parts(p), index = item / parts, size = group_elements(p);
  const Range part = is_there ? part_of(size, kStatisticsPart, item - index * parts) : Range{0, 0};
  const T* x = static_cast<const T*>(p.x) + index * size;
  double sum = 0, squares = 0;
  for (int64_t i = part.begin + lane * 8; i < part.end; i += width * 8) {
    S v[8], eight = 0;
    load<8>(x + i, part.end - i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) eight += v[j];
    sum += eight;
  }
  const double mean = group_sum<kThreads>(sum, width) / double(max(part.size(), 1));
  for (int64_t i = part.begin + lane * 8; i < part.end; i += width * 8) {
    S v[8], eight = 0;
    load<8>(x + i, part.end - i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (i + j < part.end) eight += (v[j] - S(mean)) * (v[j] - S(mean));
    squares += eight;
  }
  squares = group_sum<kThreads>(squares, width);
  if (is_there && lane == 0) {
    p.partials[item * 2] = mean;
    p.partials[item * 2 + 1] = squares;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const GroupNormParams p, int64_t items, int width) {
  if (p.channels_inside) {
    for (int64_t item = blockIdx.x; item < items; item += gridDim.x) statistics_of_columns<T>(p, item, width);
  } else {
    const int group = int(threadIdx.x) / width, groups = kThreads / width;
    for (int64_t base = int64_t(blockIdx.x) * groups; base < items; base += int64_t(gridDim.x) * groups)
      statistics_of_run<T>(p, base + group, base + group < items, width);
  }
}

// ---- groups and channels --------------------------------------------------------------------------------

// `width` neighbouring threads join a group.
template <class S>
__global__ void __launch_bounds__(kThreads)
    join_statistics_kernel(const GroupNormParams p, int64_t items, int width) {
  const int lane = int(threadIdx.x) % width, own = int(threadIdx.x) / width, groups = kThreads / width;
  for (int64_t base = int64_t(blockIdx.x) * groups; base < items; base += int64_t(gridDim.x) * groups) {
    const int64_t item = base + own, sample = item / p.groups, group = item - sample * p.groups;
    const bool is_there = item < items;
    if (!p.statistics_given) {
      const GroupNormStatistics statistics{p, sample, group};
      const int64_t terms = is_there ? statistics.terms() : 0;
      const double count = double(group_elements(p));
      double sum = 0, squares = 0;
      for (int64_t i = lane; i < terms; i += width) sum += statistics.mean_term(i);
      const double mean = group_sum<kThreads>(sum, width) / count;
      for (int64_t i = lane; i < terms; i += width) squares += statistics.variance_term(i, mean);
      squares = group_sum<kThreads>(squares, width);
      if (is_there && lane == 0) {
        p.mean[item] = mean;
        p.rstd[item] = statistics.rstd(squares);
      }
      __syncthreads();  // before the other threads read them
    }
    const int64_t channels = p.group_channels;
    const GroupNormJoin join{p, sample, group};
    for (int64_t c = lane; is_there && c < channels; c += width)
      join.template set_statistics<S>(group * channels + c, p.mean[item]);
  }
}

template <class S, class Join>
__global__ void __launch_bounds__(kThreads) join_kernel(const GroupNormParams p, int64_t items, int width) {
  const int lane = int(threadIdx.x) % width, own = int(threadIdx.x) / width, groups = kThreads / width;
  const int64_t channels = p.group_channels;
  for (int64_t base = int64_t(blockIdx.x) * groups; base < items; base += int64_t(gridDim.x) * groups) {
    const int64_t item = base + own;
    const int64_t end = item < items ? channels : 0;
    const Join join{{p, item / p.groups, item % p.groups}};
    double sums[Join::kTerms] = {};
    for (int64_t c = lane; c < end; c += width) {
      double terms[Join::kTerms];
      join.terms(join.group * channels + c, terms);
#pragma unroll
      for (int s = 0; s < Join::kTerms; ++s) sums[s] += terms[s];
    }
#pragma unroll
    for (int s = 0; s < Join::kTerms; ++s) sums[s] = group_sum<kThreads>(sums[s], width);
    for (int64_t c = lane; c < end; c += width) join.template finish<S>(join.group * channels + c, sums);
  }
}

__global__ void __launch_bounds__(kThreads) parameters_kernel(const GroupNormParams p, int width) {
  double of_weight, of_bias;
  sum_rows<kThreads>(
      p.channels, width, p.samples,
      [&](int64_t sample, int64_t channel) {
        parameter_terms(p, sample, channel / p.group_channels, channel, of_weight, of_bias);
        return of_weight;
      },
      [&](int64_t channel, double sum) { put_number(p.dweight, channel, sum); });
  sum_rows<kThreads>(
      p.channels, width, p.samples,
      [&](int64_t sample, int64_t channel) {
        parameter_terms(p, sample, channel / p.group_channels, channel, of_weight, of_bias);
        return of_bias;
      },
      [&](int64_t channel, double sum) { put_number(p.dbias, channel, sum); });
}

// ---- launches -------------------------------------------------------------------------------------------

template <class... Params>
void launch_groups(void (*kernel)(Params...), const GroupNormParams& p, int64_t items, int64_t work,
                   void* stream) {
  const int width = power_of_two(work, kThreads);
  launch(kernel, grid_size(ceil_div(items, kThreads / width)), kThreads, 0, stream, p, items, width);
}

template <Stage kStage>
void pass(const GroupNormParams& p, int64_t items, void* stream) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    // the sums of cotangents have no activation in them
    dispatch_act(kStage == Stage::cotangent_sums ? Act::linear : p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (kStage != Stage::cotangent_sums || A == Act::linear) {
        if (p.channels_inside)
          launch(columns_kernel<T, A, kStage>, grid_size(items), kThreads, 0, stream, p, items,
                 power_of_two(ceil_div(p.channels, 8), kThreads));
        else
          launch_groups(runs_kernel<T, A, kStage>, p, items, ceil_div(p.inner_per_part, 8), stream);
      }
    });
  });
}

template <class Join>
void join(const GroupNormParams& p, int64_t items, void* stream) {
  dispatch_acc(p.dtype,
               [&]<class S>(S*) { launch_groups(join_kernel<S, Join>, p, items, p.group_channels, stream); });
}

}  // namespace

namespace cuda {

void group_norm_stage(const GroupNormParams& p, int64_t items, void* stream) {
  switch (p.stage) {
    case Stage::statistics:
      return dispatch_dtype(p.dtype, [&]<class T>(T*) {
        if (p.channels_inside)
          launch(statistics_kernel<T>, grid_size(items), kThreads, 0, stream, p, items,
                 power_of_two(ceil_div(p.channels, 8), kThreads));
        else
          launch_groups(statistics_kernel<T>, p, items, ceil_div(min(group_elements(p), kStatisticsPart), 8),
                        stream);
      });
    case Stage::join_statistics:
      return dispatch_acc(p.dtype, [&]<class S>(S*) {
        const int64_t terms = statistics_parts(p) * (p.channels_inside ? p.group_channels : 1);
        const int64_t work = p.statistics_given ? p.group_channels : terms;
        launch_groups(join_statistics_kernel<S>, p, items, work, stream);
      });
    case Stage::forward:
      return pass<Stage::forward>(p, items, stream);
    case Stage::gradient_sums:
      return pass<Stage::gradient_sums>(p, items, stream);
    case Stage::join_gradients:
      return join<GroupNormGradientJoin>(p, items, stream);
    case Stage::backward:
      return pass<Stage::backward>(p, items, stream);
    case Stage::cotangent_sums:
      return pass<Stage::cotangent_sums>(p, items, stream);
    case Stage::join_cotangents:
      return join<GroupNormCotangentJoin>(p, items, stream);
    case Stage::second_sums:
      return pass<Stage::second_sums>(p, items, stream);
    case Stage::join_second:
      return join<GroupNormSecondJoin>(p, items, stream);
    case Stage::double_backward:
      return pass<Stage::double_backward>(p, items, stream);
    case Stage::parameters:
      launch_sum_rows<kThreads>(parameters_kernel, p.channels, stream, p);
  }
}

}  // namespace cuda
}  // namespace aigc
