#include "filtered_lrelu/filtered_lrelu.h"

#include <cmath>
#include <utility>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kThreadElements = 8192;           // of x and y, enough work for a thread
constexpr int64_t kMostPadding = int64_t{1} << 40;  // more than memory allows

struct Options {
  int64_t up, down, pad_x0, pad_x1, pad_y0, pad_y1;
  double gain, slope;
  std::optional<double> clamp;
  bool flip_filter;
};

int64_t check_filter(const char* op, const char* name, const OptionalTensor& f, const Tensor& x) {
  if (!f) return 1;
  const ScalarType dtype = acc_type(x);
  AIGC_CHECK(f->dim() == 1 && f->numel() >= 1 && f->numel() <= kMostTaps, op, ": ", name, " has shape ",
             shape(*f), ", but must have one dimension of 1 to ", kMostTaps, " taps");
  AIGC_CHECK(f->scalar_type() == dtype, op, ": ", name, " is ", dtype_name(f->scalar_type()),
             ", but must be ", dtype_name(dtype), " for images of ", dtype_name(x.scalar_type()));
  return f->numel();
}

// The two steps along an axis, from x to y.
void make_axes(const char* op, const char* axis, int64_t size, int64_t taps_u, int64_t taps_d,
               const Options& o, int64_t pad0, int64_t pad1, FirAxis& first, FirAxis& second) {
  for (const int64_t pad : {pad0, pad1})
    AIGC_CHECK(pad >= -kMostPadding && pad <= kMostPadding, op, ": padding along ", axis, " is ", pad,
               ", but must be from ", -kMostPadding, " to ", kMostPadding);
  const int64_t padded = size_sum({size_product({size, o.up}), pad0, pad1});
  AIGC_CHECK(padded >= taps_u + taps_d - 1, op, ": along ", axis, ", size ", size, " times up ", o.up,
             " with padding [", pad0, ", ", pad1, "] is ", padded, ", but the filters have ", taps_u, " and ",
             taps_d, " taps and need ", taps_u + taps_d - 1);
  first = FirAxis{o.up, 1, pad0, taps_u, size, padded - taps_u + 1};
  second = FirAxis{1, o.down, 0, taps_d, first.out, (first.out - taps_d) / o.down + 1};
}

FilteredLreluParams make_params(const char* op, const Tensor& x, const char* x_name, int64_t height,
                                int64_t width, int64_t taps_u, int64_t taps_d, const Options& o) {
  FilteredLreluParams p;
  p.dtype = dtype_of(x, op, x_name);
  for (const auto& [name, value] : {std::pair("up", o.up), std::pair("down", o.down)})
    AIGC_CHECK(value >= 1 && value <= kMostFactor, op, ": ", name, " is ", value, ", but must be from 1 to ",
               kMostFactor);
  AIGC_CHECK(std::isfinite(o.gain), op, ": gain is ", o.gain, ", but must be finite");
  AIGC_CHECK(std::isfinite(o.slope), op, ": slope is ", o.slope, ", but must be finite");
  AIGC_CHECK(!o.clamp || *o.clamp >= 0, op, ": clamp is ", o.clamp.value_or(0),
             ", but must be None or at least 0");
  p.planes = size_product({x.size(0), x.size(1)});
  p.channels = x.size(1);
  p.gain = o.gain;
  p.slope = o.slope;
  p.clamp = o.clamp.value_or(-1);
  p.flip_first = p.flip_second = o.flip_filter;
  p.first_gain = double(o.up * o.up);
  make_axes(op, "x", width, taps_u, taps_d, o, o.pad_x0, o.pad_x1, p.first_x, p.second_x);
  make_axes(op, "y", height, taps_u, taps_d, o, o.pad_y0, o.pad_y1, p.first_y, p.second_y);
  // mask_bytes is less: a bit in two planes for each pixel, and rows of up to 12 phases are rounded up.
  size_product({p.planes, p.first_y.out, size_sum({p.first_x.out, 256})});
  return p;
}

FirAxis transposed(const FirAxis& a) { return {a.down, a.up, a.taps - 1 - a.pad, a.taps, a.out, a.in}; }

// The transposed map. (It has at least one output: each output of the original one had all its taps.)
FilteredLreluParams transposed(FilteredLreluParams p) {
  const FirAxis first_x = p.first_x, first_y = p.first_y;
  p.first_x = transposed(p.second_x);
  p.first_y = transposed(p.second_y);
  p.second_x = transposed(first_x);
  p.second_y = transposed(first_y);
  std::swap(p.first, p.second);
  std::swap(p.first_gain, p.second_gain);
  p.flip_first = p.flip_second = !p.flip_first;
  return p;
}

void check_mask(const char* op, const FilteredLreluParams& p, const Tensor& mask) {
  AIGC_CHECK(mask.scalar_type() == ScalarType::Byte && mask.is_contiguous() && mask.numel() == mask_bytes(p),
             op, ": mask is ", dtype_name(mask.scalar_type()), " of shape ", shape(mask),
             ", but must be the one that filtered_lrelu(..., save=True) returned for these sizes: uint8 of ",
             "shape [", mask_bytes(p), "]");
}

Tensor run(FilteredLreluParams& p, const Tensor& x) {
  const int64_t h = p.second_y.out, w = p.second_x.out;
  const int64_t sizes[] = {x.size(0), x.size(1), h, w};
  const Tensor y = empty_dense(x, sizes, p.channels_last);
  p.y = y.data_ptr();
  if (p.planes > 0) {
    const int64_t pixels = h * w + p.first_y.in * p.first_x.in;
    AIGC_RUN(filtered_lrelu_run, p, lrelu_items(p), grain_of(kThreadElements * lrelu_bands(p), pixels), x);
  }
  return y;
}

std::tuple<Tensor, Tensor> filtered_lrelu(const Tensor& x_any, OptionalTensor b, OptionalTensor fu,
                                          OptionalTensor fd, OptionalTensor given_mask, int64_t up,
                                          int64_t down, int64_t pad_x0, int64_t pad_x1, int64_t pad_y0,
                                          int64_t pad_y1, double gain, double slope,
                                          std::optional<double> clamp, bool flip_filter, bool save) {
  constexpr const char* op = "filtered_lrelu";
  AIGC_CHECK(x_any.dim() == 4 && x_any.size(2) > 0 && x_any.size(3) > 0, op, ": x has shape ", shape(x_any),
             ", but must be [N, C, H, W] with at least one row and column");
  dtype_of(x_any, op, "x");
  const int64_t taps_u = check_filter(op, "fu", fu, x_any), taps_d = check_filter(op, "fd", fd, x_any);
  const Options options{up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip_filter};
  FilteredLreluParams p = make_params(op, x_any, "x", x_any.size(2), x_any.size(3), taps_u, taps_d, options);
  if (b) {
    check_same_kind(*b, "b", x_any, "x", op);
    check_channels(*b, "b", x_any, op);
  }
  if (given_mask) check_mask(op, p, *given_mask);
  const Tensor x = as_dense(x_any);
  p.channels_last = is_channels_last(x);
  b = contiguous(b), fu = contiguous(fu), fd = contiguous(fd);
  p.x = x.data_ptr();
  p.b = data_or_null(b);
  p.first = data_or_null(fu);
  p.second = data_or_null(fd);
  const Tensor mask = empty_1d(x, save && !given_mask ? mask_bytes(p) : 0, ScalarType::Byte);
  p.masked = given_mask.has_value();
  if (p.masked || save) p.mask = static_cast<uint8_t*>((p.masked ? *given_mask : mask).data_ptr());
  return {run(p, x), mask};
}

std::tuple<Tensor, Tensor> filtered_lrelu_backward(const Tensor& dy_any, const Tensor& mask,
                                                   OptionalTensor fu, OptionalTensor fd, int64_t height,
                                                   int64_t width, int64_t up, int64_t down, int64_t pad_x0,
                                                   int64_t pad_x1, int64_t pad_y0, int64_t pad_y1,
                                                   double gain, double slope, std::optional<double> clamp,
                                                   bool flip_filter, bool channels_last, bool need_b) {
  constexpr const char* op = "filtered_lrelu_backward";
  AIGC_CHECK(dy_any.dim() == 4, op, ": dy has shape ", shape(dy_any), ", but must be [N, C, H, W]");
  AIGC_CHECK(height > 0 && width > 0, op, ": the height is ", height, " and the width is ", width,
             ", but both must be at least 1");
  dtype_of(dy_any, op, "dy");
  const int64_t taps_u = check_filter(op, "fu", fu, dy_any), taps_d = check_filter(op, "fd", fd, dy_any);
  const Options options{up, down, pad_x0, pad_x1, pad_y0, pad_y1, gain, slope, clamp, flip_filter};
  FilteredLreluParams p = make_params(op, dy_any, "dy", height, width, taps_u, taps_d, options);
  const int64_t sizes[] = {dy_any.size(0), dy_any.size(1), p.second_y.out, p.second_x.out};
  AIGC_CHECK(dy_any.sizes() == Sizes(sizes), op, ": dy has shape ", shape(dy_any), ", but must be ",
             shape(Sizes(sizes)), " for images of ", height, " x ", width);
  check_mask(op, p, mask);
  const Tensor dy = as_format(dy_any, channels_last);
  p.channels_last = channels_last;
  fu = contiguous(fu), fd = contiguous(fd);
  p.first = data_or_null(fu);
  p.second = data_or_null(fd);
  p = transposed(p);
  p.x = dy.data_ptr();
  p.masked = true;
  p.mask = static_cast<uint8_t*>(mask.data_ptr());
  const Tensor db = empty_1d(dy, need_b ? p.channels : 0, dy.scalar_type());
  Tensor sums = empty_1d(dy, need_b && !kOnGpu ? lrelu_items(p) : 0, ScalarType::Double);
  if (sums.numel() > 0) p.sums = static_cast<double*>(sums.data_ptr());
  const Tensor dx = run(p, dy);
  if (need_b) {
    p.sum = db.data_ptr();
    AIGC_RUN(filtered_lrelu_sum, p, p.channels, 64, dy);
  }
  return {dx, db};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "filtered_lrelu(Tensor x, Tensor? b, Tensor? fu, Tensor? fd, Tensor? mask, "
      "int up, int down, int pad_x0, int pad_x1, int pad_y0, int pad_y1, "
      "float gain, float slope, float? clamp, bool flip_filter, bool save) "
      "-> (Tensor y, Tensor mask)");
  m.def(
      "filtered_lrelu_backward(Tensor dy, Tensor mask, Tensor? fu, Tensor? fd, int height, int width, "
      "int up, int down, int pad_x0, int pad_x1, int pad_y0, int pad_y1, "
      "float gain, float slope, float? clamp, bool flip_filter, bool channels_last, bool need_b) "
      "-> (Tensor dx, Tensor db)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "filtered_lrelu", filtered_lrelu);
  AIGC_BIND(m, "filtered_lrelu_backward", filtered_lrelu_backward);
}

}  // namespace aigc
