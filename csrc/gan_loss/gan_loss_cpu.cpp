// Traffic per logit (e = element size, a = size of acc_t): e read, a written; centred kinds read e + a more
// and write a more.
#include "core/reduce.h"
#include "gan_loss/gan_loss_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// A sum in float64, because terms may cancel, as logits do in their mean.
class Sum {
 public:
  void add(Vec<double> x) { lanes_[0] += x; }
  void add(Vec<float> x) {
    HalfVec half[2];
    std::memcpy(half, &x, sizeof(x));
    for (int i = 0; i < 2; ++i) lanes_[i] += __builtin_convertvector(half[i], Vec<double>);
  }
  double total() const { return horizontal_sum(lanes_[0] + lanes_[1]); }

 private:
  typedef float HalfVec __attribute__((vector_size(AIGC_VECTOR_BYTES / 2)));
  Vec<double> lanes_[2]{};
};

// The sum of one member of all chunks' partials, in their order.
inline double total(const GanLossParams& p, int side, double GanLossPartial::* what) {
  constexpr int64_t kStride = sizeof(GanLossPartial) / sizeof(double);
  return sum_of(&(p.partials[side].*what), p.chunks, p.side_count * kStride);
}

template <class T>
inline Vec<T> weights_at(const GanLossParams& p, int64_t per_weight, int64_t i, int64_t n) {
  const auto* weights = static_cast<const acc_t<T>*>(p.weights);
  if (per_weight == 1) return load_upto(weights + i, n);
  const int lanes = n < kWidth<T> ? int(n) : kWidth<T>;
  const int64_t first = i / per_weight;
  Vec<T> w = broadcast<Vec<T>>(weights[first]);
  if ((i + lanes - 1) / per_weight != first)
    for (int lane = 1; lane < lanes; ++lane) w[lane] = weights[(i + lane) / per_weight];
  return w;
}

template <class T, GanTerm K>
void side_terms(const GanLossParams& p, int index, int64_t chunk) {
  using S = acc_t<T>;
  const GanLossSide& side = p.sides[index];
  const GanLossSide& other = p.sides[1 - index];
  const auto* x = static_cast<const T*>(side.logits);
  const auto* paired = p.paired ? static_cast<const T*>(other.logits) : nullptr;
  auto* slopes = static_cast<S*>(side.slopes);
  auto* losses = p.reduction == GanReduction::none ? static_cast<S*>(p.loss) : nullptr;
  const S slope_scale = S(scale(p, side)), factor = S(side.factor), sign = S(side.sign);

  const Vec<T> mean = broadcast<Vec<T>>(
      p.needs_means ? S(total(p, 1 - index, &GanLossPartial::sum) / double(other.count)) : S(0));
  const Vec<T> common_shift = p.centred ? mean : Vec<T>{};
  const Vec<T> common_threshold = p.needs_means ? mean : broadcast<Vec<T>>(S(p.threshold));

  Sum loss_sum, score_sum, slope_sum;
  int64_t correct = 0;
  const Range range = part_of(side.count, p.chunk, chunk);
  for (int64_t i = range.begin; i < range.end; i += kWidth<T>) {
    const int64_t n = range.end - i;
    const Vec<T> v = load_upto(x + i, n);
    const Vec<T> opponent = paired ? load_upto(paired + i, n) : Vec<T>{};
    GanLogit<Vec<T>> logit = gan_logit<K>(p, side, v, paired ? opponent : common_shift);
    if (p.weights) logit.weigh(weights_at<T>(p, side.per_weight, i, n));
    Mask<T> right = sign * (v - (paired ? opponent : common_threshold)) < Vec<T>{};
    if (n < kWidth<T>) {
      const Mask<T> inside = bits_to_mask<T>((1u << n) - 1);
      logit.loss = select(inside, logit.loss, Vec<T>{});
      logit.score = select(inside, logit.score, Vec<T>{});
      logit.slope = select(inside, logit.slope, Vec<T>{});
      right &= inside;
    }
    loss_sum.add(logit.loss);
    score_sum.add(logit.score);
    if (p.centred) slope_sum.add(logit.slope);
    correct += __builtin_popcount(mask_to_bits(right));
    store_upto(slopes + i, slope_scale * (p.l2 != 0 ? logit.slope + logit.l2_slope : logit.slope), n);
    if (losses) {
      const Vec<T> loss = logit.loss * factor;
      store_upto(losses + i, index == 0 ? loss : load_upto(losses + i, n) + loss, n);
    }
  }
  GanLossPartial& partial = p.partials[chunk * p.side_count + index];
  partial.loss = loss_sum.total();
  partial.score = score_sum.total();
  partial.correct = double(correct);
  partial.slope = slope_sum.total();
}

template <class T>
void means(const GanLossParams& p, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk)
    for (int index = 0; index < p.side_count; ++index) {
      const GanLossSide& side = p.sides[index];
      const Range range = part_of(side.count, p.chunk, chunk);
      Sum sum;
      for_vectors<T>(range.begin, range.end, [&](int64_t i, auto whole) {
        sum.add(load_lanes(static_cast<const T*>(side.logits) + i, range.end - i, whole));
      });
      p.partials[chunk * p.side_count + index].sum = sum.total();
    }
}

template <class T>
void finish(const GanLossParams& p, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  if (begin == 0) {
    double loss = 0;
    for (int index = 0; index < p.side_count; ++index) {
      const GanLossSide& side = p.sides[index];
      loss += scale(p, side) * total(p, index, &GanLossPartial::loss);
      if (p.stats) {
        p.stats[index] = float(total(p, index, &GanLossPartial::score) / double(side.count));
        p.stats[2 + index] = float(total(p, index, &GanLossPartial::correct) / double(side.count));
      }
    }
    if (p.reduction != GanReduction::none) *static_cast<S*>(p.loss) = S(loss);
  }
  if (!p.centred) return;
  for (int index = 0; index < 2; ++index) {
    const GanLossSide& side = p.sides[index];
    const GanLossSide& other = p.sides[1 - index];
    const double others = scale(p, other) * total(p, 1 - index, &GanLossPartial::slope);
    const S share = S(others / double(side.count));
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      const Range range = part_of(side.count, p.chunk, chunk);
      auto* slopes = static_cast<S*>(side.slopes);
      for_vectors<S>(range.begin, range.end, [&](int64_t i, auto whole) {
        store_lanes(slopes + i, load_lanes(slopes + i, range.end - i, whole) - share, range.end - i, whole);
      });
    }
  }
}

template <class T, GanTerm K>
void terms(const GanLossParams& p, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk)
    for (int index = 0; index < p.side_count; ++index) side_terms<T, K>(p, index, chunk);
}

}  // namespace

void gan_loss_means(const GanLossParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { means<T>(p, begin, end); });
}

void gan_loss_terms(const GanLossParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_term(p.term, [&](auto term) { terms<T, term.value>(p, begin, end); });
  });
}

void gan_loss_finish(const GanLossParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { finish<T>(p, begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
