#include "conv3x3/conv3x3.h"

#include "glue/backend.h"

namespace aigc {
namespace {

Conv3x3Params make_params(const Tensor& x, const Tensor& x_dense, int64_t out_channels, int64_t pad_y,
                          int64_t pad_x, const char* op) {
  Conv3x3Params p;
  p.dtype = dtype_of(x, op, "x");
  AIGC_CHECK(x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": x has shape ", shape(x),
             ", but must be [N, C, H, W] with C, H and W of at least 1");
  for (const int64_t pad : {pad_y, pad_x})
    AIGC_CHECK(pad >= 0 && pad <= 2, op, ": padding is ", pad, ", but must be 0, 1 or 2");
  p.channels_last = is_channels_last(x_dense);
  p.samples = x.size(0);
  p.in_channels = x.size(1);
  p.out_channels = out_channels;
  p.height = x.size(2);
  p.width = x.size(3);
  p.pad_y = pad_y;
  p.pad_x = pad_x;
  p.out_height = p.height + 2 * pad_y - 2;
  p.out_width = p.width + 2 * pad_x - 2;
  AIGC_CHECK(p.out_height > 0 && p.out_width > 0, op, ": x has shape ", shape(x), ", but with padding [",
             pad_y, ", ", pad_x, "] must be at least 3 high and 3 wide");
  p.x = x_dense.data_ptr();
  return p;
}

Tensor workspace(const Conv3x3Params& p, int64_t copies, const Tensor& x) {
  return empty_1d(x, copies * transformed_size(p), acc_type(p.dtype));
}

Tensor conv3x3(const Tensor& x, const Tensor& w_any, const OptionalTensor& b_any, int64_t pad_y,
               int64_t pad_x, bool transposed) {
  constexpr const char* op = "conv3x3";
  dtype_of(x, op, "x");
  check_same_kind(w_any, "w", x, "x", op);
  AIGC_CHECK(
      w_any.dim() == 4 && w_any.size(0) > 0 && w_any.size(1) > 0 && w_any.size(2) == 3 && w_any.size(3) == 3,
      op, ": w has shape ", shape(w_any), ", but must be [out_channels, in_channels, 3, 3]");
  const Tensor x_dense = as_dense(x), w = as_format(w_any, false);
  Conv3x3Params p = make_params(x, x_dense, w.size(transposed ? 1 : 0), pad_y, pad_x, op);
  AIGC_CHECK(p.in_channels == w.size(transposed ? 0 : 1), op, ": x has shape ", shape(x), ", but must have ",
             w.size(transposed ? 0 : 1), " channels for a w of shape ", shape(w));
  if (b_any) {
    check_same_kind(*b_any, "b", x, "x", op);
    check_vector(*b_any, "b", p.out_channels, op);
  }
  const OptionalTensor b = contiguous(b_any);
  const int64_t sizes[] = {p.samples, p.out_channels, p.out_height, p.out_width};
  const Tensor y = empty_dense(x, sizes, p.channels_last), transformed = workspace(p, 1, x);
  p.transposed = transposed;
  p.b = data_or_null(b);
  p.w = w.data_ptr();
  p.y = y.data_ptr();
  p.transformed = transformed.data_ptr();
  if (p.samples == 0) return y;
  AIGC_RUN(conv3x3_filters, p, padded_channels(p.out_channels) / 32, 1, x);
  AIGC_RUN(conv3x3_forward, p, conv3x3_blocks(p), 1, x);
  return y;
}

Tensor conv3x3_weight_gradient(const Tensor& dy_any, const Tensor& x, int64_t pad_y, int64_t pad_x) {
  constexpr const char* op = "conv3x3_weight_gradient";
  dtype_of(x, op, "x");
  check_same_kind(dy_any, "dy", x, "x", op);
  const Tensor x_dense = as_dense(x);
  Conv3x3Params p = make_params(x, x_dense, dy_any.dim() > 1 ? dy_any.size(1) : 0, pad_y, pad_x, op);
  AIGC_CHECK(dy_any.dim() == 4 && dy_any.size(0) == p.samples && dy_any.size(1) > 0 &&
                 dy_any.size(2) == p.out_height && dy_any.size(3) == p.out_width,
             op, ": dy has shape ", shape(dy_any), ", but must be [", p.samples, ", out_channels, ",
             p.out_height, ", ", p.out_width, "]");
  const Tensor dy = as_format(dy_any, p.channels_last);
  const int64_t sizes[] = {p.out_channels, p.in_channels, 3, 3};
  const Tensor dw = empty_dense(x, sizes, false);
  p.chunks = gradient_chunks(p);
  const Tensor transformed = workspace(p, p.chunks, x);
  p.dy = dy.data_ptr();
  p.y = dw.data_ptr();
  p.transformed = transformed.data_ptr();
  AIGC_RUN(conv3x3_gradient_chunks, p, gradient_items(p), 1, x);
  AIGC_RUN(conv3x3_gradient_filters, p, p.in_channels, 8, x);
  return dw;
}

}  // namespace

AIGC_OPS(m) {
  m.def("conv3x3(Tensor x, Tensor w, Tensor? b, int pad_y, int pad_x, bool transposed) -> Tensor");
  m.def("conv3x3_weight_gradient(Tensor dy, Tensor x, int pad_y, int pad_x) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "conv3x3", conv3x3);
  AIGC_BIND(m, "conv3x3_weight_gradient", conv3x3_weight_gradient);
}

}  // namespace aigc
