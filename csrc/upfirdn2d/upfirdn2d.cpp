#include "upfirdn2d/upfirdn2d.h"

#include <cmath>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kThreadElements = 32768;  // enough work for a thread
// Far below where products overflow, but more than memory allows.
constexpr int64_t kMostFactor = 1 << 16, kMostPadding = int64_t{1} << 40;

struct Options {
  int64_t up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1;
  bool flip_filter;
  double gain;
};

FirAxis make_axis(const char* op, const char* axis, int64_t in, int64_t taps, int64_t up, int64_t down,
                  int64_t pad0, int64_t pad1) {
  const auto check_factor = [&](const char* name, int64_t value) {
    AIGC_CHECK(value >= 1 && value <= kMostFactor, op, ": ", name, " along ", axis, " is ", value,
               ", but must be from 1 to ", kMostFactor);
  };
  check_factor("up", up);
  check_factor("down", down);
  for (const int64_t pad : {pad0, pad1})
    AIGC_CHECK(pad >= -kMostPadding && pad <= kMostPadding, op, ": padding along ", axis, " is ", pad,
               ", but must be from ", -kMostPadding, " to ", kMostPadding);
  const int64_t padded = size_sum({size_product({in, up}), pad0, pad1});
  AIGC_CHECK(padded >= taps, op, ": along ", axis, ", size ", in, " times up ", up, " with padding [", pad0,
             ", ", pad1, "] is ", padded, ", but the filter has ", taps, " taps and needs as many");
  FirAxis result;
  result.up = up;
  result.down = down;
  result.pad = pad0;
  result.taps = taps;
  result.in = in;
  result.out = (padded - taps) / down + 1;
  return result;
}

Upfirdn2dParams make_params(const char* op, const Tensor& x, const Tensor& x_dense, int64_t taps_x,
                            int64_t taps_y, const Options& o) {
  Upfirdn2dParams p;
  p.dtype = dtype_of(x, op, "x");
  AIGC_CHECK(x.dim() == 4 && x.size(2) > 0 && x.size(3) > 0, op, ": x has shape ", shape(x),
             ", but must be [N, C, H, W] with at least one row and column");
  AIGC_CHECK(std::isfinite(o.gain), op, ": gain is ", o.gain, ", but must be finite");
  p.channels_last = is_channels_last(x_dense);
  p.batch = x.size(0);
  p.channels = x.size(1);
  p.x_axis = make_axis(op, "x", x.size(3), taps_x, o.up_x, o.down_x, o.pad_x0, o.pad_x1);
  p.y_axis = make_axis(op, "y", x.size(2), taps_y, o.up_y, o.down_y, o.pad_y0, o.pad_y1);
  p.flip_filter = o.flip_filter;
  p.gain = o.gain;
  p.x = x_dense.data_ptr();
  return p;
}

Tensor upfirdn2d(const Tensor& x, const OptionalTensor& f, int64_t up_x, int64_t up_y, int64_t down_x,
                 int64_t down_y, int64_t pad_x0, int64_t pad_x1, int64_t pad_y0, int64_t pad_y1,
                 bool flip_filter, double gain) {
  constexpr const char* op = "upfirdn2d";
  int64_t taps_x = 1, taps_y = 1;
  if (f) {
    AIGC_CHECK((f->dim() == 1 || f->dim() == 2) && f->numel() > 0, op, ": f has shape ", shape(*f),
               ", but must have one or two dimensions and at least one tap");
    AIGC_CHECK(f->scalar_type() == acc_type(x), op, ": f is ", dtype_name(f->scalar_type()), ", but must be ",
               dtype_name(acc_type(x)), " for an x of ", dtype_name(x.scalar_type()));
    taps_y = f->size(0);
    taps_x = f->size(f->dim() - 1);
  }
  const Tensor x_dense = as_dense(x);
  const Options options{up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, gain};
  Upfirdn2dParams p = make_params(op, x, x_dense, taps_x, taps_y, options);
  p.separable = f && f->dim() == 1;
  const OptionalTensor f_dense = contiguous(f);
  p.f = data_or_null(f_dense);
  const int64_t sizes[] = {p.batch, p.channels, p.y_axis.out, p.x_axis.out};
  const Tensor y = empty_dense(x, sizes, p.channels_last);
  p.y = y.data_ptr();
  if (x.numel() > 0) {
    const int64_t row = p.x_axis.out * (p.channels_last ? p.channels : 1);
    AIGC_RUN(upfirdn2d_forward, p, fir_planes(p) * fir_bands(p),
             grain_of(kThreadElements, row * min(kFirRows, p.y_axis.out)), x);
  }
  return y;
}

// The gradient of sum(dy * upfirdn2d(x, f)) with respect to a two-dimensional f of [taps_y, taps_x].
Tensor upfirdn2d_filter_gradient(const Tensor& dy_any, const Tensor& x, int64_t taps_x, int64_t taps_y,
                                 int64_t up_x, int64_t up_y, int64_t down_x, int64_t down_y, int64_t pad_x0,
                                 int64_t pad_x1, int64_t pad_y0, int64_t pad_y1, bool flip_filter,
                                 double gain) {
  constexpr const char* op = "upfirdn2d_filter_gradient";
  AIGC_CHECK(taps_x >= 1 && taps_y >= 1, op, ": the filter's shape is [", taps_y, ", ", taps_x,
             "], but it must have at least one tap");
  const Tensor x_dense = as_dense(x);
  const Options options{up_x, up_y, down_x, down_y, pad_x0, pad_x1, pad_y0, pad_y1, flip_filter, gain};
  Upfirdn2dParams p = make_params(op, x, x_dense, taps_x, taps_y, options);
  check_same_kind(dy_any, "dy", x, "x", op);
  const int64_t dy_sizes[] = {p.batch, p.channels, p.y_axis.out, p.x_axis.out};
  AIGC_CHECK(dy_any.sizes() == Sizes(dy_sizes), op, ": dy has shape ", shape(dy_any), ", but must be ",
             shape(Sizes(dy_sizes)), " for an x of shape ", shape(x));
  const int64_t taps = size_product({taps_y, taps_x});
  const int64_t sizes[] = {taps_y, taps_x}, strides[] = {taps_x, 1};
  Tensor df = empty_strided(x, sizes, strides, acc_type(x));
  if (x.numel() == 0) return torch::stable::zero_(df);
  const Tensor dy = as_format(dy_any, p.channels_last);
  p.dy = dy.data_ptr();
  p.y = df.data_ptr();
  const Tensor partials = empty_1d(x, size_product({gradient_items(p), taps}), ScalarType::Double);
  p.partials = static_cast<double*>(partials.data_ptr());
  const int64_t work = p.x_axis.out * min(kGradientRows, p.y_axis.out) * taps;
  AIGC_RUN(upfirdn2d_filter_partials, p, gradient_items(p), grain_of(kThreadElements, work), x);
  AIGC_RUN(upfirdn2d_filter_reduce, p, taps, grain_of(kThreadElements, gradient_items(p)), x);
  return df;
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "upfirdn2d(Tensor x, Tensor? f, "
      "int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int pad_y0, int pad_y1, "
      "bool flip_filter, float gain) -> Tensor");
  m.def(
      "upfirdn2d_filter_gradient(Tensor dy, Tensor x, int taps_x, int taps_y, "
      "int up_x, int up_y, int down_x, int down_y, int pad_x0, int pad_x1, int pad_y0, int pad_y1, "
      "bool flip_filter, float gain) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "upfirdn2d", upfirdn2d);
  AIGC_BIND(m, "upfirdn2d_filter_gradient", upfirdn2d_filter_gradient);
}

}  // namespace aigc
