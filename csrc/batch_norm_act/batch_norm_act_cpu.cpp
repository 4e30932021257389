#include "batch_norm_act/batch_norm_act.h"

#include <algorithm>

#include "core/math.h"
#include "core/reduce.h"
#include "core/scratch.h"

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
template <class V>
V first_lanes(V v, int64_t n, std::true_type) {
  static_cast<void>(n);
  return v;
}
template <class V>
V first_lanes(V v, int64_t n, std::false_type) {
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

template <class T, Act A>
struct Activation {
  using S = acc_t<T>;
  S alpha, gain, clamp;
  bool clamped;

  explicit Activation(const BatchNormParams& p)
      : alpha(S(p.alpha)), gain(S(p.gain)), clamp(S(p.clamp)), clamped(p.clamp >= 0) {}

  Vec<T> value(Vec<T> z) const {
    Vec<T> y = gain * activation<A>(z, alpha);
    if (clamped)
      y = select(y > clamp, broadcast<Vec<T>>(clamp), select(y < -clamp, broadcast<Vec<T>>(-clamp), y));
    return y;
  }

  Vec<T> gradient(Vec<T> z, Vec<T> dy) const {
    Vec<T> dz;
    if constexpr (A == Act::linear) {
      dz = dy * gain;
    } else if constexpr (A == Act::relu) {
      dz = select(z <= Vec<T>{}, Vec<T>{}, dy * gain);  // zero whatever dy holds
    } else if constexpr (A == Act::lrelu) {
      dz = dy * select(z <= Vec<T>{}, broadcast<Vec<T>>(gain * alpha), broadcast<Vec<T>>(gain));
    } else {
      dz = dy * (gain * activation_derivative<A>(z));
    }
    if (clamped) {
      const Vec<T> y = gain * activation<A>(z, alpha);
      dz = select((y <= clamp) & (y >= -clamp), dz, Vec<T>{});
    }
    return dz;
  }
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
// the vector at an element to its sums. They run in acc_t over kSumBlock rows and are then added up in
// float64. The rows are read in memory order, a few at a time.
template <class T, int kSums, class Term>
void sum_down(const BatchNormParams& p, const BatchNormPart& part, double* totals, Term&& term) {
  using S = acc_t<T>;
  constexpr int64_t kRows = 4;
  const int64_t stride = round_up(p.channels, kWidth<T>);
  const Scratch<S> block(kSums * stride);
  const auto add_rows = [&](int64_t o, auto rows) {
    for_vectors<T>(0, p.channels, [&](int64_t i, auto whole) {
      Vec<T> sums[kSums];
      for (int s = 0; s < kSums; ++s) sums[s] = load_bytes<Vec<T>>(block.get() + s * stride + i);
      for (int64_t row = 0; row < decltype(rows)::value; ++row)
        term((o + row) * p.channels + i, i, p.channels - i, whole, sums);
      for (int s = 0; s < kSums; ++s) std::memcpy(block.get() + s * stride + i, &sums[s], sizeof(Vec<T>));
    });
  };
  std::fill_n(totals, kSums * p.channels, 0.0);
  for (int64_t o = part.outer.begin; o < part.outer.end;) {
    const int64_t end = min(o + kSumBlock, part.outer.end);
    for (; o + kRows <= end; o += kRows) add_rows(o, std::integral_constant<int64_t, kRows>());
    for (; o < end; ++o) add_rows(o, std::integral_constant<int64_t, 1>());
    for (int s = 0; s < kSums; ++s)
      for (int64_t c = 0; c < p.channels; ++c) {
        totals[s * p.channels + c] += block.get()[s * stride + c];
        block.get()[s * stride + c] = 0;
      }
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
    means.get()[c] = acc_t<T>(partials[c]);
  }
  sum_down<T, 1>(p, part, partials + p.channels,
                 [&](int64_t at, int64_t channel, int64_t n, auto whole, Vec<T>(&sums)[1]) {
                   const Vec<T> d =
                       load_lanes(x + at, n, whole) - load_lanes(means.get() + channel, n, whole);
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
  const Activation<T, A> act;
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

void join_statistics(const BatchNormParams& p, int64_t channel, double& mean, double& var) {
  const int64_t parts = part_count(p);
  const double count = double(p.outer * p.inner);
  const auto elements = [&](int64_t index) { return double(part_at(p, index).size()); };
  double sum = 0, squares = 0;
  for (int64_t i = 0; i < parts; ++i) sum += elements(i) * p.partials[i * 2 * p.channels + channel];
  mean = sum / count;
  for (int64_t i = 0; i < parts; ++i) {
    const double* partial = p.partials + i * 2 * p.channels + channel;
    const double distance = partial[0] - mean;
    squares += partial[p.channels] + elements(i) * distance * distance;
  }
  var = squares / count;
}

template <class T>
void factors_of_statistics(const BatchNormParams& p, int64_t channel, double mean, double var) {
  auto* factors = static_cast<acc_t<T>*>(p.factors) + channel;
  const double weight = p.weight ? number(p.weight, p.weight_dtype, channel) : 1;
  factors[kMean * p.channels] = acc_t<T>(mean);
  factors[kScale * p.channels] = acc_t<T>(weight / ::sqrt(var + p.eps));
  factors[kBias * p.channels] = acc_t<T>(p.bias ? number(p.bias, p.bias_dtype, channel) : 0);
}

template <class T>
void join_gradients(const BatchNormParams& p, int64_t channel) {
  const double var = number(p.var, p.statistics_dtype, channel), r = 1 / ::sqrt(var + p.eps);
  double sum = 0, product = 0;
  for (int64_t i = 0; i < part_count(p); ++i) {
    sum += p.partials[i * 2 * p.channels + channel];
    product += p.partials[(i * 2 + 1) * p.channels + channel];
  }
  if (p.dbias) put_number(p.dbias, p.bias_dtype, channel, sum);
  if (p.dweight) put_number(p.dweight, p.weight_dtype, channel, product * r);
  if (!p.of_batch) return;
  const double weight = p.weight ? number(p.weight, p.weight_dtype, channel) : 1;
  const double share = weight * r / double(p.outer * p.inner);
  auto* factors = static_cast<acc_t<T>*>(p.factors) + channel;
  factors[kConstant * p.channels] = acc_t<T>(share * sum);
  factors[kSlope * p.channels] = acc_t<T>(share * product * r * r);
}

// ---- elements -------------------------------------------------------------------------------------------

template <class T, bool kInside, Act A, bool kBackward>
void rows(const BatchNormParams& p, int64_t begin, int64_t end) {
  const Row<T, kInside, A> row(p);
  auto* y = static_cast<T*>(p.y);
  const int64_t pieces = kInside ? 1 : piece_count(p), length = kInside ? p.channels : p.inner;
  int64_t index = begin / pieces, piece = begin % pieces, channel_of_row = index % p.channels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t from = piece * kPieceLength;
    const int64_t to = !kInside && from + kPieceLength < length ? from + kPieceLength : length;
    for_vectors<T>(kInside ? 0 : from, to, [&](int64_t i, auto whole) {
      const int64_t at = index * length + i, n = to - i, channel = kInside ? i : channel_of_row;
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
    dispatch_dtype(p.dtype, [&]<class T>(T*) { factors_of_statistics<T>(p, channel, mean, var); });
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
