#include "snake/snake.h"

#include "glue/backend.h"

namespace aigc {
namespace {

// Elements of an item. CPU: with a sine for each, enough work for a thread. GPU: there must be several items
// for each of a hundred or more multiprocessors.
constexpr int64_t kChunkElements = kOnGpu ? 2048 : 8192;
// Of a segment. Audio has few and long planes: one may be all that there is.
constexpr int64_t kSegment = 8192;
// So many items are enough for a GPU; beyond that, larger items make for fewer partial sums.
constexpr int64_t kManyItems = 4096;

// x is dense.
SnakeParams make_params(const Tensor& x, const Tensor& alpha, int64_t dim, const char* op) {
  SnakeParams p;
  p.dtype = dtype_of(x, op, "x");
  dim = wrap_dim(dim, x, op);
  check_same_kind(alpha, "alpha", x, "x", op);
  AIGC_CHECK(alpha.dim() == 1 && alpha.size(0) == x.size(dim), op, ": alpha has shape ", shape(alpha),
             ", but must be [", x.size(dim), "] for an x of shape ", shape(x), " and dim ", dim);
  const ChannelLayout layout = channel_layout(x, dim);
  p.outer = layout.outer;
  p.channels = layout.channels;
  p.inner = layout.inner;
  if (p.channels == 1) {  // one alpha for all: one plane
    p.inner = p.outer * p.inner;
    p.outer = 1;
  }
  p.segment = kSegment;
  // Where alpha runs along a unit, a chunk writes a whole row of partial sums: it needs enough pixels for that
  // to pay.
  p.units_per_chunk = max(kChunkElements / max(unit_length(p), 1), alpha_runs_along(p) ? 16 : 1);
  if (kOnGpu && alpha_runs_along(p)) p.units_per_chunk = max(p.units_per_chunk, p.outer / kManyItems);
  p.x = x.data_ptr();
  p.alpha = alpha.data_ptr();
  return p;
}

int64_t items(const SnakeParams& p) { return p.channels * p.inner == 0 ? 0 : chunk_count(p); }

// Runs a backward kernel with its workspace, and the reduction after it. Returns the gradient of alpha, which
// is empty if it is not asked for.
template <class Run>
Tensor with_alpha_gradient(SnakeParams& p, const Tensor& x, bool need_alpha, Run&& run) {
  Tensor dalpha = empty_1d(x, need_alpha ? p.channels : 0, x.scalar_type());
  if (!need_alpha || items(p) == 0) {
    run();
    torch::stable::zero_(dalpha);
    return dalpha;
  }
  const Tensor partials = empty_1d(x, partial_rows(p) * p.channels, ScalarType::Double);
  p.partials = static_cast<double*>(partials.data_ptr());
  p.dalpha = dalpha.data_ptr();
  run();
  AIGC_RUN(snake_reduce, p, p.channels, 64, x);
  return dalpha;
}

// `t` in the format of x, whose dtype and shape it must have.
Tensor like_x(const Tensor& t, const char* name, const Tensor& x, const char* op) {
  check_same_kind(t, name, x, "x", op);
  check_same_shape(t, name, x, "x", op);
  return as_format(t, is_channels_last(x));
}

Tensor snake(const Tensor& x_any, const Tensor& alpha_any, int64_t dim) {
  const Tensor x = as_dense(x_any), alpha = as_format(alpha_any, false);
  SnakeParams p = make_params(x, alpha, dim, "snake");
  const Tensor y = torch::stable::empty_like(x);
  p.y = y.data_ptr();
  AIGC_RUN(snake_forward, p, items(p), 1, x);
  return y;
}

std::tuple<Tensor, Tensor> snake_backward(const Tensor& dy_any, const Tensor& x_any, const Tensor& alpha_any,
                                          int64_t dim, bool need_alpha) {
  constexpr const char* op = "snake_backward";
  const Tensor x = as_dense(x_any), alpha = as_format(alpha_any, false);
  SnakeParams p = make_params(x, alpha, dim, op);
  const Tensor dy = like_x(dy_any, "dy", x, op), dx = torch::stable::empty_like(x);
  p.dy = dy.data_ptr();
  p.y = dx.data_ptr();
  const Tensor dalpha =
      with_alpha_gradient(p, x, need_alpha, [&] { AIGC_RUN(snake_backward, p, items(p), 1, x); });
  return {dx, dalpha};
}

std::tuple<Tensor, Tensor, Tensor> snake_double_backward(const Tensor& v_any, OptionalTensor w_any,
                                                         const Tensor& dy_any, const Tensor& x_any,
                                                         const Tensor& alpha_any, int64_t dim,
                                                         bool need_alpha) {
  constexpr const char* op = "snake_double_backward";
  const Tensor x = as_dense(x_any), alpha = as_format(alpha_any, false);
  const OptionalTensor w = contiguous(w_any);
  SnakeParams p = make_params(x, alpha, dim, op);
  const Tensor dy = like_x(dy_any, "dy", x, op), v = like_x(v_any, "v", x, op);
  if (w) {
    check_same_kind(*w, "w", x, "x", op);
    check_same_shape(*w, "w", alpha, "alpha", op);
  }
  const Tensor grad_dy = torch::stable::empty_like(x), grad_x = torch::stable::empty_like(x);
  p.dy = dy.data_ptr();
  p.v = v.data_ptr();
  p.w = data_or_null(w);
  p.grad_dy = grad_dy.data_ptr();
  p.y = grad_x.data_ptr();
  const Tensor grad_alpha =
      with_alpha_gradient(p, x, need_alpha, [&] { AIGC_RUN(snake_double_backward, p, items(p), 1, x); });
  return {grad_dy, grad_x, grad_alpha};
}

}  // namespace

AIGC_OPS(m) {
  m.def("snake(Tensor x, Tensor alpha, int dim) -> Tensor");
  m.def(
      "snake_backward(Tensor dy, Tensor x, Tensor alpha, int dim, bool need_alpha) "
      "-> (Tensor dx, Tensor dalpha)");
  m.def(
      "snake_double_backward(Tensor v, Tensor? w, Tensor dy, Tensor x, Tensor alpha, int dim, "
      "bool need_alpha) -> (Tensor grad_dy, Tensor grad_x, Tensor grad_alpha)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "snake", snake);
  AIGC_BIND(m, "snake_backward", snake_backward);
  AIGC_BIND(m, "snake_double_backward", snake_double_backward);
}

}  // namespace aigc
