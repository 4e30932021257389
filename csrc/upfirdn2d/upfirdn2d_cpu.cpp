// The vertical pass sums rows of x into rows of a buffer that stays in cache and has zeros where the image is
// padded: four rows at a time, so that a pixel is loaded and converted once for all rows that it contributes
// to. The horizontal pass makes rows of y from these, one by one, so that y is a single stream of stores;
// only for channels-last does it make four at a time.
//
// Where pixels are adjacent (NCHW), the buffer is split into lanes of every step-th column. Output
// j * phases + phase then reads at offsets from j that are the same for all j, so that all loads are whole
// vectors. Where channels are adjacent (NHWC), vectors run along the channels.
//
// A two-dimensional filter that is an outer product, as those of setup_filter are, is separated into its
// factors.
#include "core/reduce.h"
#include "core/scratch.h"
#include "upfirdn2d/upfirdn2d_horizontal.h"
#include "upfirdn2d/upfirdn2d_vertical.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int64_t kHeldBytes = 24 << 10;  // of the buffer, which is to stay in L1 even if rows are long

template <class T>
class Filter {
  using S = acc_t<T>;

 public:
  explicit Filter(const Upfirdn2dParams& p)
      : p_(p),
        x_(p.x_axis),
        y_(p.y_axis),
        weights_(p),
        separable_(weights_.is_outer_product),
        layout_(p, kWidth<T>),
        most_rows_(separable_ ? 1 : ceil_div(y_.taps, y_.up)),
        taps_(x_, layout_, most_rows_),
        vertical_(y_, x_.in, layout_, &weights_.y[0]),
        horizontal_(p, layout_, taps_, known_taps(), separable_ ? kRows : 1),
        held_(max(kRows, min(kFirRows, kHeldBytes / int64_t(layout_.row * sizeof(S)) / kRows * kRows))),
        buffer_(layout_.row * (separable_ ? held_ : most_rows_)) {
    if (separable_) taps_.add_row(0, &weights_.x[0]);
  }

  void band(int64_t item) const {
    const int64_t bands = fir_bands(p_), plane = item / bands, inner = layout_.inner;
    const T* x = static_cast<const T*>(p_.x) + plane * y_.in * x_.in * inner;
    T* y = static_cast<T*>(p_.y) + plane * y_.out * x_.out * inner;
    const int64_t begin = vertical_.start() + item % bands * kFirRows, end = min(begin + kFirRows, y_.out);
    if (separable_) {
      for (int64_t o = begin; o < end; o += held_) {
        const int64_t stop = min(o + held_, end);
        for (int64_t r = o; r < stop; r += kRows) vertical_.sum(x, r, &buffer_[(r - o) * layout_.row]);
        for (int64_t r = o; r < stop; r += kRows) horizontal_.run(&buffer_[(r - o) * layout_.row], y, r);
      }
    } else {
      for (int64_t o = max(begin, 0); o < end; ++o) {
        gather(x, o);
        horizontal_.run(buffer_.get(), y, o);
      }
    }
  }

 private:
  // Taps of every phase of a row, 0 if they differ or are not known.
  int64_t known_taps() const { return separable_ && x_.taps % x_.up == 0 ? x_.taps / x_.up : 0; }

  // Copies the rows that output row o reads into the buffer, and their taps into the table.
  void gather(const T* x, int64_t o) const {
    taps_.clear();
    for (int64_t t = 0; t < y_.count(o); ++t) {
      const int64_t i = y_.first(o) + t;
      if (i < 0 || i >= y_.in) continue;
      vertical_.copy(x, i, &buffer_[t * layout_.row]);
      taps_.add_row(t, &weights_.xy[(y_.tap(o) + t * y_.up) * x_.taps]);
    }
  }

  const Upfirdn2dParams& p_;
  const FirAxis x_, y_;
  const Weights<S> weights_;
  const bool separable_;
  const Layout layout_;
  const int64_t most_rows_;  // of x, that a row of the horizontal pass reads
  const PhaseTaps<S> taps_;
  const Vertical<T> vertical_;
  const Horizontal<T> horizontal_;
  const int64_t held_;  // rows of the buffer
  const Scratch<S> buffer_;
};

void add(double* sums, double* lost, int64_t k, double term) {
  const double mended = term - lost[k], sum = sums[k] + mended;
  lost[k] = (sum - sums[k]) - mended;
  sums[k] = sum;
}

// Sums over one plane's band of rows, tap by tap.
template <class T>
void gradient_item(const Upfirdn2dParams& p, int64_t item) {
  const int64_t bands = gradient_bands(p), plane = item / bands;
  const FirAxis &x_axis = p.x_axis, &y_axis = p.y_axis;
  const int64_t pixel = pixel_stride(p);
  const T* x = static_cast<const T*>(p.x) + plane_at(p, plane, y_axis.in * x_axis.in);
  const T* dy = static_cast<const T*>(p.dy) + plane_at(p, plane, y_axis.out * x_axis.out);
  double* partial = p.partials + item * y_axis.taps * x_axis.taps;
  // What each sum lost by rounding (Kahan 1965): over random images they nearly cancel.
  const Scratch<double> lost(y_axis.taps * x_axis.taps);
  for (int64_t k = 0; k < y_axis.taps * x_axis.taps; ++k) partial[k] = 0;
  const int64_t begin = item % bands * kGradientRows, end = min(begin + kGradientRows, y_axis.out);
  for (int64_t oy = begin; oy < end; ++oy)
    for (int64_t ty = max(0, -y_axis.first(oy)); ty < min(y_axis.count(oy), y_axis.in - y_axis.first(oy));
         ++ty) {
      const int64_t taps_row = (y_axis.tap(oy) + ty * y_axis.up) * x_axis.taps;
      const T* x_row = x + (y_axis.first(oy) + ty) * x_axis.in * pixel;
      for (int64_t ox = 0; ox < x_axis.out; ++ox) {
        const int64_t first = x_axis.first(ox), tap = x_axis.tap(ox);
        const double slope = load_scalar(dy + (oy * x_axis.out + ox) * pixel);
        for (int64_t t = max(0, -first); t < min(x_axis.count(ox), x_axis.in - first); ++t)
          add(partial, lost.get(), taps_row + tap + t * x_axis.up,
              slope * load_scalar(x_row + (first + t) * pixel));
      }
    }
}

}  // namespace

void upfirdn2d_forward(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    const Filter<T> filter(p);
    for (int64_t item = begin; item < end; ++item) filter.band(item);
  });
#if defined(__SSE2__)
  _mm_sfence();  // makes non-temporal stores visible before the thread reports that it is done
#endif
}

void upfirdn2d_filter_partials(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item) gradient_item<T>(p, item);
  });
}

void upfirdn2d_filter_reduce(const Upfirdn2dParams& p, int64_t begin, int64_t end) {
  const int64_t taps = p.x_axis.taps * p.y_axis.taps;
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    for (int64_t k = begin; k < end; ++k)
      static_cast<S*>(p.y)[p.flip_filter ? k : taps - 1 - k] =
          S(sum_of(p.partials + k, gradient_items(p), taps) * p.gain);
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
