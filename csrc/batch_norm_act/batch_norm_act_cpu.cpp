#include "batch_norm_act/batch_norm_formula.h"
#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

double number(const void* values, DType dtype, int64_t at) {
  double result = 0;
  dispatch_dtype(dtype, [&]<class T>(T*) { result = load_scalar(static_cast<const T*>(values) + at); });
  return result;
}

void put_number(void* values, DType dtype, int64_t at, double value) {
  dispatch_dtype(dtype, [&]<class T>(T*) { store_scalar(static_cast<T*>(values) + at, acc_t<T>(value)); });
}

// The first n lanes of v, followed by zeros.
template <class V, class Whole>
V first_lanes(V v, [[maybe_unused]] int64_t n, Whole) {
  if constexpr (!Whole::value)
    for (int64_t j = n; j < int64_t(sizeof(V) / sizeof(v[0])); ++j) v[j] = 0;
  return v;
}

// The factors of a row's channels: those of one channel, or of adjacent ones.
template <class T, bool kInside>
class Factors {
  using S = acc_t<T>;

 public:
  explicit Factors(const BatchNormParams& p)
      : factors_(static_cast<const S*>(p.factors)), channels_(p.channels) {}

  template <class Whole>
  Vec<T> get(BatchNormFactor which, int64_t channel, int64_t n, Whole whole) const {
    const S* at = factors_ + which * channels_ + channel;
    if constexpr (!kInside) return broadcast<Vec<T>>(*at);
    return load_lanes(at, n, whole);
  }

 private:
  const S* factors_;
  int64_t channels_;
};

// ---- sums over a part -----------------------------------------------------------------------------------

// Calls f(element, elements left in its run, whole) for each vector of the channel's part.
template <class T, class F>
void for_part(const BatchNormParams& p, const BatchNormPart& part, int64_t channel, F&& f) {
  for (int64_t o = part.outer.begin; o < part.outer.end; ++o) {
    const int64_t row = (o * p.channels + channel) * p.inner;
    for_vectors<T>(row + part.inner.begin, row + part.inner.end,
                   [&](int64_t at, auto whole) { f(at, row + part.inner.end - at, whole); });
  }
}

// Sums over the rows of the part into totals[kSums][channels]: term(element, channel, n, whole, sums) adds
// the vector at an element to its sums. The rows are read in memory order, a few at a time.
template <class T, int kSums, class Term>
void sum_down(const BatchNormParams& p, const BatchNormPart& part, double* totals, Term&& term) {
  constexpr int64_t kRows = 4;
  ColumnSums<T, kSums> columns(p.channels);
  const auto add_rows = [&](int64_t o, auto rows) {
    for_vectors<T>(0, p.channels, [&](int64_t i, auto whole) {
      columns.update(i, [&](Vec<T>(&sums)[kSums]) {
        for (int64_t row = 0; row < decltype(rows)::value; ++row)
          term((o + row) * p.channels + i, i, p.channels - i, whole, sums);
      });
    });
  };
  columns.begin(totals);
  for (int64_t o = part.outer.begin; o < part.outer.end;) {
    const int64_t end = min(o + kSumBlock, part.outer.end);
    for (; o + kRows <= end; o += kRows) add_rows(o, std::integral_constant<int64_t, kRows>());
    for (; o < end; ++o) add_rows(o, std::integral_constant<int64_t, 1>());
    columns.end_block();
  }
}

template <class T>
void statistics_of_columns(const BatchNormParams& p, int64_t item) {
  const auto* x = static_cast<const T*>(p.x);
  const BatchNormPart part = part_at(p, item);
  double* partials = p.partials + item * 2 * p.channels;
  sum_down<T, 1>(p, part, partials, [&](int64_t at, int64_t, int64_t n, auto whole, Vec<T>(&sums)[1]) {
    sums[0] += load_lanes(x + at, n, whole);
  });
  const Scratch<acc_t<T>> means(p.channels);
  for (int64_t c = 0; c < p.channels; ++c) {
    partials[c] /= double(part.outer.size());
    means[c] = acc_t<T>(partials[c]);
  }
  sum_down<T, 1>(p, part, partials + p.channels,
                 [&](int64_t at, int64_t channel, int64_t n, auto whole, Vec<T>(&sums)[1]) {
                   const Vec<T> d = load_lanes(x + at, n, whole) - load_lanes(&means[channel], n, whole);
                   sums[0] += d * d;
                 });
}

template <class T>
void statistics_of_runs(const BatchNormParams& p, int64_t item) {
  const auto* x = static_cast<const T*>(p.x);
  const int64_t index = item / p.channels, channel = item % p.channels;
  const BatchNormPart part = part_at(p, index);
  double* partials = p.partials + index * 2 * p.channels + channel;
  BlockSum<T> sum, squares;
  for_part<T>(p, part, channel,
              [&](int64_t at, int64_t n, auto whole) { sum.add(load_lanes(x + at, n, whole)); });
  const double count = double(part.size());
  const double mean = sum.total() / count;
  for_part<T>(p, part, channel, [&](int64_t at, int64_t n, auto whole) {
    const Vec<T> d = first_lanes(load_lanes(x + at, n, whole) - acc_t<T>(mean), n, whole);
    squares.add(d * d);
  });
  partials[0] = mean;
  partials[p.channels] = squares.total();
}

template <class T, bool kInside, Act A>
struct Row {
  using S = acc_t<T>;
  const Factors<T, kInside> factors;
  const ClampedActivation<A, S> act;
  const T* x;
  const T* dy;

  explicit Row(const BatchNormParams& p)
      : factors(p), act(p), x(static_cast<const T*>(p.x)), dy(static_cast<const T*>(p.dy)) {}

  // x - mean, and z
  template <class Whole>
  void preactivation(int64_t at, int64_t channel, int64_t n, Whole whole, Vec<T>& centred, Vec<T>& z) const {
    centred = load_lanes(x + at, n, whole) - factors.get(kMean, channel, n, whole);
    z = centred * factors.get(kScale, channel, n, whole) + factors.get(kBias, channel, n, whole);
  }
  template <class Whole>
  void gradient(int64_t at, int64_t channel, int64_t n, Whole whole, Vec<T>& centred, Vec<T>& dz) const {
    Vec<T> z;
    preactivation(at, channel, n, whole, centred, z);
    dz = act.gradient(z, load_lanes(dy + at, n, whole));
  }
};

template <class T, Act A>
void gradient_sums_of_columns(const BatchNormParams& p, int64_t item) {
  const Row<T, true, A> row(p);
  const BatchNormPart part = part_at(p, item);
  sum_down<T, 2>(p, part, p.partials + item * 2 * p.channels,
                 [&](int64_t at, int64_t channel, int64_t n, auto whole, Vec<T>(&sums)[2]) {
                   Vec<T> centred, dz;
                   row.gradient(at, channel, n, whole, centred, dz);
                   sums[0] += dz;
                   sums[1] += dz * centred;
                 });
}

template <class T, Act A>
void gradient_sums_of_runs(const BatchNormParams& p, int64_t item) {
  const Row<T, false, A> row(p);
  const int64_t index = item / p.channels, channel = item % p.channels;
  double* partials = p.partials + index * 2 * p.channels + channel;
  BlockSum<T> sum, product;
  for_part<T>(p, part_at(p, index), channel, [&](int64_t at, int64_t n, auto whole) {
    Vec<T> centred, dz;
    row.gradient(at, channel, n, whole, centred, dz);
    dz = first_lanes(dz, n, whole);
    sum.add(dz);
    product.add(dz * first_lanes(centred, n, whole));
  });
  partials[0] = sum.total();
  partials[p.channels] = product.total();
}

// ---- channels -------------------------------------------------------------------------------------------

double weight_of(const BatchNormParams& p, int64_t channel) {
  return p.weight ? number(p.weight, p.weight_dtype, channel) : 1;
}

void join_statistics(const BatchNormParams& p, int64_t channel, double& mean, double& var) {
  const double count = double(p.outer * p.inner);
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < part_count(p); ++i) sum += mean_term(p, i, channel);
  mean = sum / count;
  for (int64_t i = 0; i < part_count(p); ++i) squares += variance_term(p, i, channel, mean);
  var = squares / count;
}

template <class T>
void join_gradients(const BatchNormParams& p, int64_t channel) {
  const double var = number(p.var, p.statistics_dtype, channel), r = 1 / ::sqrt(var + p.eps);
  const double* partials = p.partials + channel;
  const double sum = sum_of(partials, part_count(p), 2 * p.channels);
  const double product = sum_of(partials + p.channels, part_count(p), 2 * p.channels);
  if (p.dbias) put_number(p.dbias, p.bias_dtype, channel, sum);
  if (p.dweight) put_number(p.dweight, p.weight_dtype, channel, product * r);
  if (!p.of_batch) return;
  const double weight = weight_of(p, channel), count = double(p.outer * p.inner);
  ChannelFactors<acc_t<T>> factors(p, channel);
  factors.set_constant(weight, r, count, sum);
  factors.set_slope(weight, r, count, product);
}

// ---- elements -------------------------------------------------------------------------------------------

template <class T, bool kInside, Act A, bool kBackward>
void rows(const BatchNormParams& p, int64_t begin, int64_t end) {
  const Row<T, kInside, A> row(p);
  auto* y = static_cast<T*>(p.y);
  const int64_t pieces = kInside ? 1 : piece_count(p), length = kInside ? p.channels : p.inner;
  int64_t index = begin / pieces, piece = begin % pieces, channel_of_row = index % p.channels;
  for (int64_t item = begin; item < end; ++item) {
    const Range range = kInside ? Range{0, length} : part_of(length, kPieceLength, piece);
    for_vectors<T>(range.begin, range.end, [&](int64_t i, auto whole) {
      const int64_t at = index * length + i, n = range.end - i, channel = kInside ? i : channel_of_row;
      Vec<T> centred, result;
      if constexpr (kBackward) {
        Vec<T> dz;
        row.gradient(at, channel, n, whole, centred, dz);
        result = row.factors.get(kScale, channel, n, whole) * dz;
        if (p.of_batch)
          result = result - row.factors.get(kConstant, channel, n, whole) -
                   centred * row.factors.get(kSlope, channel, n, whole);
      } else {
        Vec<T> z;
        row.preactivation(at, channel, n, whole, centred, z);
        result = row.act.value(z);
      }
      store_lanes(y + at, result, n, whole);
    });
    if (++piece == pieces) {
      piece = 0;
      ++index;
      if (++channel_of_row == p.channels) channel_of_row = 0;
    }
  }
}

template <bool kBackward>
void run_rows(const BatchNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      channels_inside(p) ? rows<T, true, A, kBackward>(p, begin, end)
                         : rows<T, false, A, kBackward>(p, begin, end);
    });
  });
}

}  // namespace

void batch_norm_statistics(const BatchNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item)
      channels_inside(p) ? statistics_of_columns<T>(p, item) : statistics_of_runs<T>(p, item);
  });
}

void batch_norm_gradient_sums(const BatchNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      for (int64_t item = begin; item < end; ++item)
        channels_inside(p) ? gradient_sums_of_columns<T, A>(p, item) : gradient_sums_of_runs<T, A>(p, item);
    });
  });
}

void batch_norm_join_statistics(const BatchNormParams& p, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) {
    double mean = 0, var = 0;
    if (p.of_batch && p.batch_mean) {
      join_statistics(p, channel, mean, var);
      p.batch_mean[channel] = mean;
      p.batch_var[channel] = var;
    } else {
      mean = number(p.mean, p.statistics_dtype, channel);
      var = number(p.var, p.statistics_dtype, channel);
    }
    const double bias = p.bias ? number(p.bias, p.bias_dtype, channel) : 0;
    dispatch_acc(p.dtype, [&]<class S>(S*) {
      ChannelFactors<S>(p, channel).set_statistics(mean, var, p.eps, weight_of(p, channel), bias);
    });
  }
}

void batch_norm_join_gradients(const BatchNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t channel = begin; channel < end; ++channel) join_gradients<T>(p, channel);
  });
}

void batch_norm_act_forward(const BatchNormParams& p, int64_t begin, int64_t end) {
  run_rows<false>(p, begin, end);
}
void batch_norm_act_backward(const BatchNormParams& p, int64_t begin, int64_t end) {
  run_rows<true>(p, begin, end);
}

}  // namespace AIGC_ISA
}  // namespace aigc
