#include "pixel_norm/pixel_norm.h"

#include <cmath>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kThreadElements = 32768;  // enough work for a thread

PixelNormParams make_params(const Tensor& x, const Tensor& x_dense, int64_t dim, double eps, const char* op) {
  PixelNormParams p;
  p.dtype = dtype_of(x, op, "x");
  AIGC_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps is ", eps, ", but must be at least 0 and finite");
  const ChannelLayout layout = channel_layout(x_dense, wrap_dim(dim, x, op));
  p.outer = layout.outer;
  p.channels = layout.channels;
  p.inner = layout.inner;
  p.eps = eps;
  p.x = x_dense.data_ptr();
  return p;
}

// t, which must be of x's kind and shape, in the memory format of x_dense.
Tensor in_format(const Tensor& t, const char* name, const Tensor& x, const Tensor& x_dense, const char* op) {
  check_same_kind(t, name, x, "x", op);
  check_same_shape(t, name, x, "x", op);
  return as_format(t, is_channels_last(x_dense));
}

int64_t items(const PixelNormParams& p) { return p.channels * p.inner == 0 ? 0 : pixel_items(p); }

int64_t grain(const PixelNormParams& p) {
  return grain_of(kThreadElements, p.channels * min(p.inner, kPixelTile) + 1);
}

Tensor pixel_norm(const Tensor& x, int64_t dim, double eps) {
  const Tensor x_dense = as_dense(x);
  PixelNormParams p = make_params(x, x_dense, dim, eps, "pixel_norm");
  const Tensor y = torch::stable::empty_like(x_dense);
  p.y = y.data_ptr();
  AIGC_RUN(pixel_norm_forward, p, items(p), grain(p), x);
  return y;
}

Tensor pixel_norm_backward(const Tensor& dy_any, const Tensor& x, int64_t dim, double eps) {
  constexpr const char* op = "pixel_norm_backward";
  const Tensor x_dense = as_dense(x);
  PixelNormParams p = make_params(x, x_dense, dim, eps, op);
  const Tensor dy = in_format(dy_any, "dy", x, x_dense, op);
  const Tensor dx = torch::stable::empty_like(x_dense);
  p.dy = dy.data_ptr();
  p.y = dx.data_ptr();
  AIGC_RUN(pixel_norm_backward, p, items(p), grain(p), x);
  return dx;
}

Tensor pixel_norm_double_backward(const Tensor& u_any, const Tensor& dy_any, const Tensor& x, int64_t dim,
                                  double eps) {
  constexpr const char* op = "pixel_norm_double_backward";
  const Tensor x_dense = as_dense(x);
  PixelNormParams p = make_params(x, x_dense, dim, eps, op);
  const Tensor dy = in_format(dy_any, "dy", x, x_dense, op), u = in_format(u_any, "u", x, x_dense, op);
  const Tensor grad_x = torch::stable::empty_like(x_dense);
  p.dy = dy.data_ptr();
  p.u = u.data_ptr();
  p.y = grad_x.data_ptr();
  AIGC_RUN(pixel_norm_double_backward, p, items(p), grain(p), x);
  return grad_x;
}

}  // namespace

AIGC_OPS(m) {
  m.def("pixel_norm(Tensor x, int dim, float eps) -> Tensor");
  m.def("pixel_norm_backward(Tensor dy, Tensor x, int dim, float eps) -> Tensor");
  m.def("pixel_norm_double_backward(Tensor u, Tensor dy, Tensor x, int dim, float eps) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "pixel_norm", pixel_norm);
  AIGC_BIND(m, "pixel_norm_backward", pixel_norm_backward);
  AIGC_BIND(m, "pixel_norm_double_backward", pixel_norm_double_backward);
}

}  // namespace aigc
