// Traffic per logit (e = element size, a = size of acc_t): e read, a written; centred kinds read e + a more
// and write a more.
#include "core/math.h"
#include "core/simd.h"
#include "gan_loss/gan_loss.h"

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
  double sum = 0;
  for (int64_t chunk = 0; chunk < p.chunks; ++chunk) sum += p.partials[chunk * p.side_count + side].*what;
  return sum;
}

// The factor of a side's sum in the loss.
inline double scale(const GanLossParams& p, const GanLossSide& side) {
  return p.reduction == GanReduction::mean ? side.factor / double(side.count) : side.factor;
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

template <class T>
struct Term {
  Vec<T> phi, slope;
};

template <class T, GanTerm K>
inline Term<T> evaluate(Vec<T> x, Vec<T> shift, const GanLossSide& side) {
  using S = acc_t<T>;
  const S sign = S(side.sign);
  const Vec<T> u = sign * (x - shift);
  if constexpr (K == GanTerm::softplus) {
    Term<T> term{softplus(u), sign * sigmoid(u)};
    if (side.smoothing != 0) {  // 0 * infinity would be NaN
      term.phi += S(side.smoothing) * x;
      term.slope += S(side.smoothing);
    }
    return term;
  } else if constexpr (K == GanTerm::hinge) {
    const Vec<T> v = u + S(1);
    const auto below = v <= Vec<T>{};  // NaN takes the other branch, as in PyTorch
    return {select(below, Vec<T>{}, v), select(below, Vec<T>{}, broadcast<Vec<T>>(sign))};
  } else if constexpr (K == GanTerm::square) {
    const Vec<T> v = x - S(side.target);
    return {v * v * S(0.5), v};
  } else {
    return {u, broadcast<Vec<T>>(sign)};
  }
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
  const S slope_scale = S(scale(p, side)), factor = S(side.factor), l2 = S(p.l2), sign = S(side.sign);

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
    Term<T> term = evaluate<T, K>(v, paired ? opponent : common_shift, side);
    Vec<T> loss = side.counts_phi ? term.phi : Vec<T>{};
    Vec<T> score = v;
    if constexpr (K == GanTerm::softplus)  // of a fake, the slope; of a real one, 1 + slope would cancel
      if (p.is_probability) score = side.sign > 0 ? term.slope : sigmoid(v);
    Vec<T> slope = term.slope;
    Vec<T> l2_slope = l2 * v;
    if (p.l2 != 0) loss += l2_slope * v * S(0.5);
    if (p.weights) {
      const Vec<T> w = weights_at<T>(p, side.per_weight, i, n);
      loss *= w;
      slope *= w;
      l2_slope *= w;
    }
    Mask<T> right = sign * (v - (paired ? opponent : common_threshold)) < Vec<T>{};
    if (n < kWidth<T>) {
      const Mask<T> inside = bits_to_mask<T>((1u << n) - 1);
      loss = select(inside, loss, Vec<T>{});
      score = select(inside, score, Vec<T>{});
      slope = select(inside, slope, Vec<T>{});
      right &= inside;
    }
    loss_sum.add(loss);
    score_sum.add(score);
    if (p.centred) slope_sum.add(slope);
    correct += __builtin_popcount(mask_to_bits(right));
    store_upto(slopes + i, slope_scale * (p.l2 != 0 ? slope + l2_slope : slope), n);
    if (losses) {
      loss *= factor;
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
      for (int64_t i = range.begin; i < range.end; i += kWidth<T>)
        sum.add(load_upto(static_cast<const T*>(side.logits) + i, range.end - i));
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
      for (int64_t i = range.begin; i < range.end; i += kWidth<S>)
        store_upto(slopes + i, load_upto(slopes + i, range.end - i) - share, range.end - i);
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
    switch (p.term) {
      case GanTerm::softplus:
        return terms<T, GanTerm::softplus>(p, begin, end);
      case GanTerm::hinge:
        return terms<T, GanTerm::hinge>(p, begin, end);
      case GanTerm::square:
        return terms<T, GanTerm::square>(p, begin, end);
      case GanTerm::linear:
        return terms<T, GanTerm::linear>(p, begin, end);
    }
  });
}

void gan_loss_finish(const GanLossParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { finish<T>(p, begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
