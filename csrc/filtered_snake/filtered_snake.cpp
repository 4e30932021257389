#include "filtered_snake/filtered_snake.h"

#include "glue/backend.h"

namespace aigc {
namespace {

// Of a channel. CPU: nine lines and lanes of this length fit into the nearest cache. GPU: a block's tile.
constexpr int64_t kSegment = kOnGpu ? 512 : 1024;
constexpr int64_t kThreadElements = 8192;  // with two sines for each, enough work for a thread

// `values` is of arithmetic's dtype, whatever x is: half types would round frequencies and taps.
void check_wide(const Tensor& values, const char* name, const Tensor& x, const char* op) {
  const ScalarType dtype = acc_type(x);
  AIGC_CHECK(values.scalar_type() == dtype, op, ": ", name, " is ", dtype_name(values.scalar_type()),
             ", but must be ", dtype_name(dtype), " for an x of ", dtype_name(x.scalar_type()));
}

void check_channel_values(const OptionalTensor& values, const char* name, const Tensor& x, const char* op) {
  if (!values) return;
  check_wide(*values, name, x, op);
  check_channels(*values, name, x, op);
}

int64_t check_taps(const Tensor& f, const char* name, const Tensor& x, const char* op) {
  AIGC_CHECK(f.dim() == 1 && f.numel() >= 1 && f.numel() <= kMostSnakeTaps, op, ": ", name, " has shape ",
             shape(f), ", but must have one dimension of 1 to ", kMostSnakeTaps, " taps");
  check_wide(f, name, x, op);
  return f.numel();
}

// The tensors of a call in a dense format, which live as long as the Params that point to them.
struct Call {
  FilteredSnakeParams p;
  Tensor x, alpha, up, down;
  OptionalTensor beta;

  Call(const char* op, const Tensor& x_any, const Tensor& alpha_any, const OptionalTensor& beta_any,
       const Tensor& fu, const Tensor& fd)
      : x(x_any), alpha(alpha_any), up(fu), down(fd), beta(beta_any) {
    AIGC_CHECK(x.dim() == 3 && x.size(2) > 0, op, ": x has shape ", shape(x),
               ", but must be [N, C, L] with an L of at least 1");
    p.dtype = dtype_of(x, op, "x");
    check_channel_values(alpha, "alpha", x, op);
    check_channel_values(beta, "beta", x, op);
    p.up_taps = check_taps(up, "fu", x, op);
    p.down_taps = check_taps(down, "fd", x, op);
    p.samples = x.size(0);
    p.channels = x.size(1);
    p.length = x.size(2);
    p.segment = kSegment;
  }

  // After all checks.
  void prepare() {
    x = as_dense(x);
    alpha = as_format(alpha, false), up = as_format(up, false), down = as_format(down, false);
    beta = contiguous(beta);
    p.channels_last = is_channels_last(x);
    p.x = x.data_ptr();
    p.alpha = alpha.data_ptr();
    p.beta = data_or_null(beta);
    p.up = up.data_ptr();
    p.down = down.data_ptr();
  }

  // `t`, which must be like x, in its format.
  void check(const char* op, const Tensor& t, const char* name) const {
    check_same_kind(t, name, x, "x", op);
    check_same_shape(t, name, x, "x", op);
  }
  Tensor in_format(const Tensor& t) const { return as_format(t, p.channels_last); }

  int64_t grain() const { return grain_of(kThreadElements, min(p.segment, p.length)); }
};

// Runs a backward kernel with its workspace, and the reduction after it. Returns the gradients of alpha and
// beta, which are empty if they are not asked for.
template <class Run>
std::tuple<Tensor, Tensor> with_channel_gradients(Call& call, bool needed, Run&& run) {
  FilteredSnakeParams& p = call.p;
  const ScalarType dtype = acc_type(call.x);
  const Tensor dalpha = empty_1d(call.x, needed ? p.channels : 0, dtype);
  const Tensor dbeta = empty_1d(call.x, needed && call.beta ? p.channels : 0, dtype);
  const Tensor partials =
      empty_1d(call.x, needed ? partial_rows(p) * sums_of(p) * p.channels : 0, ScalarType::Double);
  if (needed) {
    p.partials = static_cast<double*>(partials.data_ptr());
    p.dalpha = dalpha.data_ptr();
    p.dbeta = dbeta.data_ptr();
  }
  run();
  if (needed) AIGC_RUN(filtered_snake_reduce, p, p.channels, 64, call.x);
  return {dalpha, dbeta};
}

Tensor filtered_snake(const Tensor& x, const Tensor& alpha, OptionalTensor beta, const Tensor& fu,
                      const Tensor& fd) {
  Call call("filtered_snake", x, alpha, beta, fu, fd);
  call.prepare();
  const Tensor y = torch::stable::empty_like(call.x);
  call.p.y = y.data_ptr();
  AIGC_RUN(filtered_snake_forward, call.p, segment_count(call.p), call.grain(), call.x);
  return y;
}

std::tuple<Tensor, Tensor, Tensor> filtered_snake_backward(const Tensor& dy_any, const Tensor& x,
                                                           const Tensor& alpha, OptionalTensor beta,
                                                           const Tensor& fu, const Tensor& fd,
                                                           bool need_parameters) {
  constexpr const char* op = "filtered_snake_backward";
  Call call(op, x, alpha, beta, fu, fd);
  call.check(op, dy_any, "dy");
  call.prepare();
  const Tensor dy = call.in_format(dy_any), dx = torch::stable::empty_like(call.x);
  call.p.dy = dy.data_ptr();
  call.p.y = dx.data_ptr();
  const auto [dalpha, dbeta] = with_channel_gradients(call, need_parameters, [&] {
    AIGC_RUN(filtered_snake_backward, call.p, segment_count(call.p), call.grain(), call.x);
  });
  return {dx, dalpha, dbeta};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> filtered_snake_double_backward(
    const Tensor& v_any, OptionalTensor w_alpha, OptionalTensor w_beta, const Tensor& dy_any, const Tensor& x,
    const Tensor& alpha, OptionalTensor beta, const Tensor& fu, const Tensor& fd, bool need_parameters) {
  constexpr const char* op = "filtered_snake_double_backward";
  Call call(op, x, alpha, beta, fu, fd);
  call.check(op, dy_any, "dy");
  call.check(op, v_any, "v");
  check_channel_values(w_alpha, "w_alpha", x, op);
  AIGC_CHECK(beta || !w_beta, op, ": w_beta is a tensor, but must be None, as beta is");
  check_channel_values(w_beta, "w_beta", x, op);
  call.prepare();
  w_alpha = contiguous(w_alpha), w_beta = contiguous(w_beta);
  const Tensor dy = call.in_format(dy_any), v = call.in_format(v_any);
  const Tensor grad_dy = torch::stable::empty_like(call.x), grad_x = torch::stable::empty_like(call.x);
  call.p.dy = dy.data_ptr();
  call.p.v = v.data_ptr();
  call.p.w_alpha = data_or_null(w_alpha);
  call.p.w_beta = data_or_null(w_beta);
  call.p.grad_dy = grad_dy.data_ptr();
  call.p.y = grad_x.data_ptr();
  const auto [grad_alpha, grad_beta] = with_channel_gradients(call, need_parameters, [&] {
    AIGC_RUN(filtered_snake_double_backward, call.p, segment_count(call.p), call.grain(), call.x);
  });
  return {grad_dy, grad_x, grad_alpha, grad_beta};
}

}  // namespace

AIGC_OPS(m) {
  m.def("filtered_snake(Tensor x, Tensor alpha, Tensor? beta, Tensor fu, Tensor fd) -> Tensor");
  m.def(
      "filtered_snake_backward(Tensor dy, Tensor x, Tensor alpha, Tensor? beta, Tensor fu, Tensor fd, "
      "bool need_parameters) -> (Tensor dx, Tensor dalpha, Tensor dbeta)");
  m.def(
      "filtered_snake_double_backward(Tensor v, Tensor? w_alpha, Tensor? w_beta, Tensor dy, Tensor x, "
      "Tensor alpha, Tensor? beta, Tensor fu, Tensor fd, bool need_parameters) "
      "-> (Tensor grad_dy, Tensor grad_x, Tensor grad_alpha, Tensor grad_beta)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "filtered_snake", filtered_snake);
  AIGC_BIND(m, "filtered_snake_backward", filtered_snake_backward);
  AIGC_BIND(m, "filtered_snake_double_backward", filtered_snake_double_backward);
}

}  // namespace aigc
