#if defined(__GNUC__) && !defined(__clang__)
// The vectors are explicit. GCC 12 dies of looking for more of them in the double backward for AVX-512.
#pragma GCC optimize("no-tree-slp-vectorize")
#endif

#include "core/reduce.h"
#include "group_norm_act/group_norm_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

using Stage = GroupNormStage;

// The first n lanes of v, followed by zeros.
template <class V, class Whole>
V first_lanes(V v, [[maybe_unused]] int64_t n, Whole) {
  if constexpr (!Whole::value)
    for (int64_t j = n; j < int64_t(sizeof(V) / sizeof(v[0])); ++j) v[j] = 0;
  return v;
}

// ---- statistics -----------------------------------------------------------------------------------------

template <class T>
void statistics_of_run(const GroupNormParams& p, int64_t item) {
  const int64_t parts = statistics_parts(p), size = group_elements(p);
  const Range part = part_of(size, kStatisticsPart, item % parts);
  const auto* x = static_cast<const T*>(p.x) + item / parts * size;
  BlockSum<T> sum, squares;
  for_vectors<T>(part.begin, part.end,
                 [&](int64_t i, auto whole) { sum.add(load_lanes(x + i, part.end - i, whole)); });
  const double mean = sum.total() / double(part.size());
  for_vectors<T>(part.begin, part.end, [&](int64_t i, auto whole) {
    const int64_t n = part.end - i;
    const Vec<T> d = first_lanes(load_lanes(x + i, n, whole) - acc_t<T>(mean), n, whole);
    squares.add(d * d);
  });
  p.partials[item * 2] = mean;
  p.partials[item * 2 + 1] = squares.total();
}

// Sums over the pixels of a part of a sample, into totals[kSums][channels]: term(element, channel, n, whole,
// sums) adds the vector at an element to its sums. The pixels are read in memory order, a few at a time.
template <class T, int kSums, class Term>
void sum_down(const GroupNormParams& p, int64_t item, double* totals, Term&& term) {
  constexpr int64_t kRows = kSums > 2 ? 1 : 4;
  const int64_t parts = p.parts, first = item / parts * p.inner;
  const Range part = part_of(p.inner, p.inner_per_part, item % parts);
  ColumnSums<T, kSums> columns(p.channels);
  const auto add_rows = [&](int64_t row, auto rows) {
    for_vectors<T>(0, p.channels, [&](int64_t i, auto whole) {
      columns.update(i, [&](Vec<T>(&sums)[kSums]) {
        for (int64_t r = 0; r < decltype(rows)::value; ++r)
          term((first + row + r) * p.channels + i, i, p.channels - i, whole, sums);
      });
    });
  };
  columns.begin(totals);
  for (int64_t row = part.begin; row < part.end;) {
    const int64_t end = min(row + kSumBlock, part.end);
    for (; row + kRows <= end; row += kRows) add_rows(row, std::integral_constant<int64_t, kRows>());
    for (; row < end; ++row) add_rows(row, std::integral_constant<int64_t, 1>());
    columns.end_block();
  }
}

template <class T>
void statistics_of_columns(const GroupNormParams& p, int64_t item) {
  const auto* x = static_cast<const T*>(p.x);
  double* partials = p.partials + item * 2 * p.channels;
  sum_down<T, 1>(p, item, partials, [&](int64_t at, int64_t, int64_t n, auto whole, Vec<T>(&sums)[1]) {
    sums[0] += load_lanes(x + at, n, whole);
  });
  const double rows = double(part_of(p.inner, p.inner_per_part, item % p.parts).size());
  const Scratch<acc_t<T>> means(p.channels);
  for (int64_t c = 0; c < p.channels; ++c) {
    partials[c] /= rows;
    means[c] = acc_t<T>(partials[c]);
  }
  sum_down<T, 1>(p, item, partials + p.channels,
                 [&](int64_t at, int64_t channel, int64_t n, auto whole, Vec<T>(&sums)[1]) {
                   const Vec<T> d = load_lanes(x + at, n, whole) - load_lanes(&means[channel], n, whole);
                   sums[0] += d * d;
                 });
}

// ---- elements -------------------------------------------------------------------------------------------

// The factors of one channel of a sample, or of adjacent channels.
template <class T, bool kInside>
class Factors {
 public:
  Factors(const GroupNormParams& p, int64_t sample, [[maybe_unused]] int64_t channel)
      : at_(static_cast<const acc_t<T>*>(p.factors) + sample * kFactors * p.channels), channels_(p.channels) {
    if constexpr (!kInside)
      for (int f = 0; f < kFactors; ++f) value_[f] = broadcast<Vec<T>>(at_[f * channels_ + channel]);
  }
  // Those of the vector from `channel` on, as a function of the factor.
  template <class Whole>
  auto from([[maybe_unused]] int64_t channel, [[maybe_unused]] int64_t n, Whole whole) const {
    return [=, this](GroupNormFactor f) {
      if constexpr (kInside)
        return load_lanes(at_ + f * channels_ + channel, n, whole);
      else
        return value_[f];
    };
  }

 private:
  const acc_t<T>* at_;
  int64_t channels_;
  Vec<T> value_[kInside ? 1 : kFactors];
};

template <class T, Act A>
struct Elements {
  using V = Vec<T>;
  using Element = GroupNormElement<A, V>;

  const ClampedActivation<A, acc_t<T>> act;
  const T *x, *residual, *dy, *v, *v_residual;
  T *y, *grad_dy, *dresidual;
  T* kept_dz;  // by gradient_sums for backward, where computing it costs more than memory: f' of the smooth

  explicit Elements(const GroupNormParams& p)
      : act(p),
        x(static_cast<const T*>(p.x)),
        residual(static_cast<const T*>(p.residual)),
        dy(static_cast<const T*>(p.dy)),
        v(static_cast<const T*>(p.v)),
        v_residual(static_cast<const T*>(p.v_residual)),
        y(static_cast<T*>(p.y)),
        grad_dy(static_cast<T*>(p.grad_dy)),
        dresidual(static_cast<T*>(p.dresidual)),
        kept_dz(dresidual ? dresidual : y) {}

  template <class Whole>
  static V get(const T* from, int64_t at, int64_t n, Whole whole) {
    return load_lanes(from + at, n, whole);
  }
  template <class Whole>
  static V get_any(const T* from, int64_t at, int64_t n, Whole whole) {
    return from ? load_lanes(from + at, n, whole) : V{};
  }

  // Adds what the vector at `at` contributes. What is read beyond the end is 0, and so is what is added.
  template <Stage kStage, class F, class Whole>
  void add(F&& f, int64_t at, int64_t n, Whole whole, V (&sums)[sums_of(kStage)]) const {
    if constexpr (kStage == Stage::cotangent_sums) {
      const V cotangent = get(v, at, n, whole);
      sums[0] += cotangent;
      sums[1] += cotangent * (get(x, at, n, whole) - f(kMean));
    } else {
      const Element element(act, f, get(x, at, n, whole), get_any(residual, at, n, whole));
      const V slope = get(dy, at, n, whole), dz = element.dz(slope);
      if constexpr (kStage == Stage::gradient_sums && !is_piecewise_linear(A))
        store_lanes(kept_dz + at, dz, n, whole);
      sums[0] += dz;
      sums[1] += dz * element.centred;
      if constexpr (kStage == Stage::second_sums) {
        const V cotangent = get(v, at, n, whole);
        V of_dy, of_z;
        element.second(f, slope, cotangent, get_any(v_residual, at, n, whole), of_dy, of_z);
        sums[2] += dz * cotangent;
        sums[3] += of_z;
        sums[4] += of_z * element.centred;
      }
    }
  }

  template <Stage kStage, class F, class Whole>
  void write(F&& f, int64_t at, int64_t n, Whole whole) const {
    const Element element(act, f, get(x, at, n, whole), get_any(residual, at, n, whole));
    if constexpr (kStage == Stage::forward) {
      store_lanes(y + at, element.value(), n, whole);
    } else {
      constexpr bool kIsKept = kStage == Stage::backward && !is_piecewise_linear(A);
      V slope{}, dz;
      if constexpr (kIsKept) {
        dz = get(kept_dz, at, n, whole);
      } else {
        slope = get(dy, at, n, whole);
        dz = element.dz(slope);
      }
      if constexpr (kStage == Stage::backward) {
        store_lanes(y + at, element.dx(f, dz), n, whole);
        if (dresidual && !kIsKept) store_lanes(dresidual + at, dz, n, whole);
      } else {
        const V cotangent = get(v, at, n, whole);
        V of_dy, of_z;
        element.second(f, slope, cotangent, get_any(v_residual, at, n, whole), of_dy, of_z);
        store_lanes(grad_dy + at, of_dy, n, whole);
        store_lanes(y + at, element.grad_x(f, dz, cotangent, of_z), n, whole);
        if (dresidual) store_lanes(dresidual + at, of_z, n, whole);
      }
    }
  }
};

// A part of a channel of a sample.
struct Run {
  int64_t sample, channel, part, row;
  Range range;

  Run(const GroupNormParams& p, int64_t item) {
    const int64_t parts = p.parts, index = item / parts;
    sample = index / p.channels;
    channel = index % p.channels;
    part = item % parts;
    row = index * p.inner;
    range = part_of(p.inner, p.inner_per_part, part);
  }
};

template <class T, Act A, Stage kStage>
void sums_of_run(const GroupNormParams& p, const Elements<T, A>& elements, int64_t item) {
  constexpr int kSums = sums_of(kStage);
  const Run run(p, item);
  const Factors<T, false> factors(p, run.sample, run.channel);
  double totals[kSums] = {};
  for (int64_t begin = run.range.begin; begin < run.range.end; begin += kSumBlock * kWidth<T>) {
    Vec<T> sums[kSums] = {};
    const int64_t end = min(begin + kSumBlock * kWidth<T>, run.range.end);
    for_vectors<T>(begin, end, [&](int64_t i, auto whole) {
      const int64_t n = end - i;
      elements.template add<kStage>(factors.from(0, n, whole), run.row + i, n, whole, sums);
    });
    for (int s = 0; s < kSums; ++s) totals[s] += horizontal_sum(sums[s]);
  }
  double* partials = p.partials + (run.sample * p.parts + run.part) * p.sums * p.channels + run.channel;
  for (int s = 0; s < kSums; ++s) partials[s * p.channels] = totals[s];
}

template <class T, Act A, Stage kStage>
void sums_of_columns(const GroupNormParams& p, const Elements<T, A>& elements, int64_t item) {
  constexpr int kSums = sums_of(kStage);
  const Factors<T, true> factors(p, item / p.parts, 0);
  sum_down<T, kSums>(p, item, p.partials + item * p.sums * p.channels,
                     [&](int64_t at, int64_t channel, int64_t n, auto whole, Vec<T>(&sums)[kSums]) {
                       elements.template add<kStage>(factors.from(channel, n, whole), at, n, whole, sums);
                     });
}

template <class T, Act A, Stage kStage>
void write_run(const GroupNormParams& p, const Elements<T, A>& elements, int64_t item) {
  const Run run(p, item);
  const Factors<T, false> factors(p, run.sample, run.channel);
  for_vectors<T>(run.range.begin, run.range.end, [&](int64_t i, auto whole) {
    const int64_t n = run.range.end - i;
    elements.template write<kStage>(factors.from(0, n, whole), run.row + i, n, whole);
  });
}

template <class T, Act A, Stage kStage>
void write_columns(const GroupNormParams& p, const Elements<T, A>& elements, int64_t item) {
  const int64_t parts = p.parts, sample = item / parts;
  const Factors<T, true> factors(p, sample, 0);
  const Range part = part_of(p.inner, p.inner_per_part, item % parts);
  for (int64_t row = part.begin; row < part.end; ++row)
    for_vectors<T>(0, p.channels, [&](int64_t i, auto whole) {
      const int64_t n = p.channels - i;
      elements.template write<kStage>(factors.from(i, n, whole), (sample * p.inner + row) * p.channels + i, n,
                                      whole);
    });
}

constexpr bool is_sums(Stage stage) {
  return stage == Stage::gradient_sums || stage == Stage::cotangent_sums || stage == Stage::second_sums;
}

template <Stage kStage>
void pass(const GroupNormParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    // the sums of cotangents have no activation in them
    dispatch_act(kStage == Stage::cotangent_sums ? Act::linear : p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (kStage != Stage::cotangent_sums || A == Act::linear) {
        const Elements<T, A> elements(p);
        for (int64_t item = begin; item < end; ++item) {
          if constexpr (is_sums(kStage))
            p.channels_inside ? sums_of_columns<T, A, kStage>(p, elements, item)
                              : sums_of_run<T, A, kStage>(p, elements, item);
          else
            p.channels_inside ? write_columns<T, A, kStage>(p, elements, item)
                              : write_run<T, A, kStage>(p, elements, item);
        }
      }
    });
  });
}

// ---- groups and channels --------------------------------------------------------------------------------

// Calls f(channel) for the channels of a group.
template <class F>
void for_channels(const GroupNormParams& p, int64_t group, F&& f) {
  const int64_t width = p.group_channels;
  for (int64_t c = group * width; c < (group + 1) * width; ++c) f(c);
}

void join_statistics(const GroupNormParams& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t sample = item / p.groups, group = item % p.groups;
    if (!p.statistics_given) {
      const GroupNormStatistics statistics{p, sample, group};
      const int64_t terms = statistics.terms();
      const double count = double(group_elements(p));
      double sum = 0, squares = 0;
      for (int64_t i = 0; i < terms; ++i) sum += statistics.mean_term(i);
      const double mean = sum / count;
      for (int64_t i = 0; i < terms; ++i) squares += statistics.variance_term(i, mean);
      p.mean[item] = mean;
      p.rstd[item] = statistics.rstd(squares);
    }
    dispatch_acc(p.dtype, [&]<class S>(S*) {
      const GroupNormJoin join{p, sample, group};
      for_channels(p, group, [&](int64_t channel) { join.set_statistics<S>(channel, p.mean[item]); });
    });
  }
}

template <class Join>
void join_sums(const GroupNormParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    for (int64_t item = begin; item < end; ++item) {
      const Join join{{p, item / p.groups, item % p.groups}};
      double sums[Join::kTerms] = {};
      for_channels(p, join.group, [&](int64_t channel) {
        double terms[Join::kTerms];
        join.terms(channel, terms);
        for (int s = 0; s < Join::kTerms; ++s) sums[s] += terms[s];
      });
      for_channels(p, join.group, [&](int64_t channel) { join.template finish<S>(channel, sums); });
    }
  });
}

void parameters(const GroupNormParams& p, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; ++channel) {
    const int64_t group = channel / p.group_channels;
    double of_weight = 0, of_bias = 0;
    for (int64_t sample = 0; sample < p.samples; ++sample) {
      double weight_term, bias_term;
      parameter_terms(p, sample, group, channel, weight_term, bias_term);
      of_weight += weight_term;
      of_bias += bias_term;
    }
    put_number(p.dweight, channel, of_weight);
    put_number(p.dbias, channel, of_bias);
  }
}

void run_stage(const GroupNormParams& p, Stage stage, int64_t begin, int64_t end) {
  switch (stage) {
    case Stage::statistics:
      return dispatch_dtype(p.dtype, [&]<class T>(T*) {
        for (int64_t item = begin; item < end; ++item)
          p.channels_inside ? statistics_of_columns<T>(p, item) : statistics_of_run<T>(p, item);
      });
    case Stage::join_statistics:
      return join_statistics(p, begin, end);
    case Stage::forward:
      return pass<Stage::forward>(p, begin, end);
    case Stage::gradient_sums:
      return pass<Stage::gradient_sums>(p, begin, end);
    case Stage::join_gradients:
      return join_sums<GroupNormGradientJoin>(p, begin, end);
    case Stage::backward:
      return pass<Stage::backward>(p, begin, end);
    case Stage::cotangent_sums:
      return pass<Stage::cotangent_sums>(p, begin, end);
    case Stage::join_cotangents:
      return join_sums<GroupNormCotangentJoin>(p, begin, end);
    case Stage::second_sums:
      return pass<Stage::second_sums>(p, begin, end);
    case Stage::join_second:
      return join_sums<GroupNormSecondJoin>(p, begin, end);
    case Stage::double_backward:
      return pass<Stage::double_backward>(p, begin, end);
    case Stage::parameters:
      return parameters(p, begin, end);
  }
}

}  // namespace

void group_norm_stage(const GroupNormParams& p, int64_t begin, int64_t end) {
  run_stage(p, p.stage, begin, end);
}

void group_norm_units(const GroupNormParams& p, int64_t begin, int64_t end) {
  const int64_t units = unit_count(p);
  for (int64_t unit = begin; unit < end; ++unit)
    for (int i = 0; i < p.stage_count; ++i) {
      const int64_t items = item_count(p, p.stages[i]) / units;
      run_stage(p, p.stages[i], unit * items, (unit + 1) * items);
    }
}

}  // namespace AIGC_ISA
}  // namespace aigc
