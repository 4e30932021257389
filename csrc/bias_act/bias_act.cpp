#include <cmath>
#include <numeric>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

// Elements of an item. CPU: small enough for L2, and enough work for a thread. GPU: there must be several
// items for each of a hundred or more multiprocessors.
constexpr int64_t kChunkElements = kOnGpu ? 4096 : 32768;
// Where the bias runs along the row, a chunk writes a whole row of partial sums: it needs enough rows for
// that to pay.
constexpr int64_t kFewestRows = 16;
// So many items are enough for a GPU; beyond that, larger items make for fewer partial sums.
constexpr int64_t kManyItems = 4096;
constexpr int64_t kMergedRow = 1024;  // rows shorter than 8 are merged into rows of about this length

constexpr const char* kActs[kActCount] = {"linear", "relu", "lrelu",    "tanh", "sigmoid",
                                          "elu",    "selu", "softplus", "swish"};

Act parse_act(const std::string& name, const char* op) {
  for (int i = 0; i < kActCount; ++i)
    if (name == kActs[i]) return Act(i);
  fail(op, ": act is '", name,
       "', but must be one of linear, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish");
}

// Fills in sizes and the bias/noise pointers for a dense x.
void set_rows(BiasActParams& p, const Tensor& x, const OptionalTensor& b, const OptionalTensor& noise,
              int64_t dim) {
  p.numel = x.numel();
  ChannelLayout layout{p.numel, 1, 1};
  if (b || noise) layout = channel_layout(x, dim);
  p.channels = layout.channels;
  p.inner = layout.inner;
  p.bias = data_or_null(b);
  p.noise = data_or_null(noise);
  if (noise) {
    p.noise_period = noise->numel();
    p.vec_is_bias = is_channels_last(x);
    p.row_length = p.vec_is_bias ? layout.channels : layout.inner;
  } else if (layout.inner >= 8 && layout.channels > 1) {
    p.row_length = layout.inner;
  } else {
    // One bias for all: it does not matter which dimensions are inside.
    if (layout.channels <= 1) p.inner = 1;
    p.vec_is_bias = true;
    const int64_t period = max(p.channels * p.inner, 1);
    const int64_t periods = p.numel / period;
    int64_t merged = max(1, min(kMergedRow / period, periods));
    if (merged < periods) {
      const int64_t whole_bytes =
          8 / std::gcd<int64_t>(period, 8);  // a row's mask bits must fill whole bytes
      merged = round_up(merged, whole_bytes);
    }
    p.row_length = merged * period;
  }
  p.row_length = max(p.row_length, 1);
  p.rows = ceil_div(p.numel, p.row_length);
  p.rows_per_chunk = max(kChunkElements / p.row_length, p.vec_is_bias ? kFewestRows : 1);
  if (kOnGpu && p.vec_is_bias) p.rows_per_chunk = max(p.rows_per_chunk, p.rows / kManyItems);
  p.plane_bytes = p.rows * p.row_length > p.numel ? ceil_div(p.numel, 8) : p.rows * mask_row_bytes(p);
}

void check_bias(const Tensor& x, const OptionalTensor& b, int64_t dim, const char* op) {
  if (!b) return;
  check_same_kind(*b, "b", x, "x", op);
  AIGC_CHECK(b->dim() == 1 && b->size(0) == x.size(dim), op, ": b has shape ", shape(*b), ", but must be [",
             x.size(dim), "] for an x of shape ", shape(x), " and dim ", dim);
}

void check_noise(const Tensor& x, const OptionalTensor& noise, const OptionalTensor& strength, int64_t dim,
                 const char* op) {
  AIGC_CHECK(noise.has_value() == strength.has_value(), op, ": noise and strength must be given together");
  if (!noise) return;
  AIGC_CHECK(x.dim() >= 2 && dim == 1, op,
             ": noise needs an x of shape [N, C, ...] and dim 1, but x has shape ", shape(x), " and dim is ",
             dim);
  check_same_kind(*noise, "noise", x, "x", op);
  check_same_kind(*strength, "strength", x, "x", op);
  AIGC_CHECK(strength->numel() == 1, op, ": strength has shape ", shape(*strength),
             ", but must be one number");
  bool matches =
      noise->dim() == x.dim() && (noise->size(0) == x.size(0) || noise->size(0) == 1) && noise->size(1) == 1;
  for (int64_t d = 2; matches && d < x.dim(); ++d) matches = noise->size(d) == x.size(d);
  AIGC_CHECK(matches, op, ": noise has shape ", shape(*noise), ", but for an x of shape ", shape(x),
             " it must be [N or 1, 1, ...] with x's spatial sizes");
}

// Checks what is added to a dense x, and makes it contiguous. It must outlive the params.
void set_addends(BiasActParams& p, const Tensor& x, BiasActInputs& in, const char* op) {
  if (in.b || in.noise) in.dim = wrap_dim(in.dim, x, op);
  check_bias(x, in.b, in.dim, op);
  check_noise(x, in.noise, in.strength, in.dim, op);
  in.b = contiguous(in.b);
  in.noise = contiguous(in.noise);
  set_rows(p, x, in.b, in.noise, in.dim);
  p.strength = data_or_null(in.strength);
}

std::tuple<Tensor, Tensor> bias_act(const Tensor& x_any, OptionalTensor b, OptionalTensor noise,
                                    OptionalTensor strength, int64_t dim, StringHandle act_handle,
                                    double alpha, double gain, std::optional<double> clamp, bool save) {
  const std::string act = take_string(act_handle);
  const char* op = noise || strength ? "noise_bias_act" : "bias_act";
  BiasActParams p;
  p.dtype = dtype_of(x_any, op, "x");
  set_activation(p, act, alpha, gain, clamp, op);
  const Tensor x = as_dense(x_any);
  const Tensor y = torch::stable::empty_like(x);
  Tensor mask = bias_act_into(y, x, b, noise, strength, dim, p, save, op);
  return {y, mask};
}

struct ParameterGradients {
  Tensor dbias, dstrength;
};

// Runs a backward kernel with its workspace, and the reduction after it.
template <class Run>
ParameterGradients run_backward(BiasActParams& p, const Tensor& like, bool need_b, bool need_strength,
                                Run&& run) {
  const int64_t chunks = chunk_count(p);
  const int64_t bias_partials = need_b ? (p.vec_is_bias ? chunks * p.row_length : p.rows) : 0;
  const int64_t strength_partials = need_strength ? chunks : 0;
  ParameterGradients g{empty_1d(like, need_b ? p.channels : 0, like.scalar_type()),
                       empty_1d(like, need_strength ? 1 : 0, like.scalar_type())};
  if (bias_partials + strength_partials == 0 && p.numel > 0) {
    run(p, chunks);
    return g;
  }
  if (p.numel == 0) {
    torch::stable::zero_(g.dbias);
    torch::stable::zero_(g.dstrength);
    return g;
  }
  const Tensor workspace = empty_1d(like, bias_partials + strength_partials, ScalarType::Double);
  auto* partials = static_cast<double*>(workspace.data_ptr());
  if (need_b) p.bias_partials = partials, p.dbias = g.dbias.data_ptr();
  if (need_strength) p.strength_partials = partials + bias_partials, p.dstrength = g.dstrength.data_ptr();
  run(p, chunks);
  AIGC_RUN(bias_act_reduce, p, max(p.channels, 1), 64, like);
  return g;
}

std::tuple<Tensor, Tensor, Tensor> bias_act_backward(const Tensor& dy, OptionalTensor x, OptionalTensor b,
                                                     OptionalTensor noise, OptionalTensor strength,
                                                     OptionalTensor mask, int64_t dim,
                                                     StringHandle act_handle, double alpha, double gain,
                                                     std::optional<double> clamp, bool channels_last,
                                                     bool need_b, bool need_strength) {
  const std::string act = take_string(act_handle);
  constexpr const char* op = "bias_act_backward";
  BiasActParams p;
  p.dtype = dtype_of(dy, op, "dy");
  set_activation(p, act, alpha, gain, clamp, op);
  const BiasActGradients g =
      bias_act_gradients(dy, {x, b, noise, strength, mask, dim}, p, channels_last, need_b, need_strength, op);
  return {g.dx, g.db, g.dstrength};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> bias_act_double_backward(
    const Tensor& u, const Tensor& dy, const Tensor& x, OptionalTensor b, OptionalTensor noise,
    OptionalTensor strength, int64_t dim, StringHandle act_handle, double alpha, double gain,
    std::optional<double> clamp, bool channels_last, bool need_b, bool need_strength) {
  const std::string act = take_string(act_handle);
  constexpr const char* op = "bias_act_double_backward";
  BiasActParams p;
  p.dtype = dtype_of(x, op, "x");
  set_activation(p, act, alpha, gain, clamp, op);
  const BiasActSecondGradients g = bias_act_second_gradients(
      u, dy, {x, b, noise, strength, std::nullopt, dim}, p, channels_last, need_b, need_strength, op);
  return {g.grad_dy, g.grad_x, g.grad_b, g.grad_strength};
}

}  // namespace

void set_activation(BiasActParams& p, const std::string& act, double alpha, double gain,
                    std::optional<double> clamp, const char* op) {
  p.act = parse_act(act, op);
  AIGC_CHECK(std::isfinite(alpha), op, ": alpha is ", alpha, ", but must be finite");
  AIGC_CHECK(std::isfinite(gain), op, ": gain is ", gain, ", but must be finite");
  AIGC_CHECK(!clamp || *clamp >= 0, op, ": clamp is ", clamp.value_or(0), ", but must be None or at least 0");
  p.alpha = alpha;
  p.gain = gain;
  p.clamp = clamp.value_or(-1);
}

Tensor bias_act_into(const Tensor& y, const Tensor& x, const OptionalTensor& b, const OptionalTensor& noise,
                     const OptionalTensor& strength, int64_t dim, BiasActParams p, bool save,
                     const char* op) {
  BiasActInputs in{std::nullopt, b, noise, strength, std::nullopt, dim};
  set_addends(p, x, in, op);
  p.x = x.data_ptr();
  p.y = y.data_ptr();
  const bool wants_mask = save && is_piecewise_linear(p.act);
  const Tensor mask = empty_1d(x, wants_mask ? mask_planes(p) * p.plane_bytes : 0, ScalarType::Byte);
  if (mask.numel() > 0) p.mask = static_cast<uint8_t*>(mask.data_ptr());
  AIGC_RUN(bias_act_forward, p, chunk_count(p), 1, x);
  return mask;
}

BiasActGradients bias_act_gradients(const Tensor& dy_any, BiasActInputs in, BiasActParams p,
                                    bool channels_last, bool need_b, bool need_strength, const char* op) {
  AIGC_CHECK(!channels_last || dy_any.dim() >= 3, op,
             ": channels_last needs 3 dimensions or more, dy has shape ", shape(dy_any));
  const Tensor dy = as_format(dy_any, channels_last);
  set_addends(p, dy, in, op);
  AIGC_CHECK(!need_b || in.b, op, ": the gradient of b is asked for, but b is not given");
  AIGC_CHECK(!need_strength || in.noise, op,
             ": the gradient of strength is asked for, but noise is not given");
  Tensor x = dy;
  if (!is_piecewise_linear(p.act)) {
    AIGC_CHECK(in.x, op, ": act is '", kActs[int(p.act)], "', whose backward needs x");
    check_same_kind(*in.x, "x", dy, "dy", op);
    check_same_shape(*in.x, "x", dy, "dy", op);
    x = as_format(*in.x, channels_last);
    p.x = x.data_ptr();
  } else if (mask_planes(p) > 0) {
    const OptionalTensor& mask = in.mask;
    AIGC_CHECK(mask && mask->scalar_type() == ScalarType::Byte && mask->is_contiguous() &&
                   mask->numel() == mask_planes(p) * p.plane_bytes,
               op, ": the backward of '", kActs[int(p.act)],
               "' needs the mask that bias_act(..., save=True) returned for a tensor of shape ", shape(dy),
               " in this memory format");
    p.mask = static_cast<uint8_t*>(mask->data_ptr());
  }
  const Tensor dx = torch::stable::empty_like(dy);
  p.dy = dy.data_ptr();
  p.dz = dx.data_ptr();
  const ParameterGradients g =
      run_backward(p, dy, need_b, need_strength, [&](const BiasActParams& params, int64_t chunks) {
        AIGC_RUN(bias_act_backward, params, chunks, 1, dy);
      });
  return {dx, g.dbias, g.dstrength};
}

BiasActSecondGradients bias_act_second_gradients(const Tensor& u_any, const Tensor& dy_any, BiasActInputs in,
                                                 BiasActParams p, bool channels_last, bool need_b,
                                                 bool need_strength, const char* op) {
  const Tensor& x_any = *in.x;
  AIGC_CHECK(!is_piecewise_linear(p.act), op, ": act is '", kActs[int(p.act)],
             "', whose second derivative is zero");
  for (const auto& [t, name] : {std::pair(u_any, "u"), std::pair(dy_any, "dy")}) {
    check_same_kind(t, name, x_any, "x", op);
    check_same_shape(t, name, x_any, "x", op);
  }
  AIGC_CHECK(!channels_last || x_any.dim() >= 3, op,
             ": channels_last needs 3 dimensions or more, x has shape ", shape(x_any));
  const Tensor x = as_format(x_any, channels_last), dy = as_format(dy_any, channels_last),
               u = as_format(u_any, channels_last);
  set_addends(p, x, in, op);
  AIGC_CHECK((!need_b || in.b) && (!need_strength || in.noise), op,
             ": a gradient is asked for of what is not given");
  const Tensor grad_dy = torch::stable::empty_like(x), grad_x = torch::stable::empty_like(x);
  p.x = x.data_ptr();
  p.dy = dy.data_ptr();
  p.u = u.data_ptr();
  p.dz = grad_dy.data_ptr();
  p.dz2 = grad_x.data_ptr();
  const ParameterGradients g =
      run_backward(p, x, need_b, need_strength, [&](const BiasActParams& params, int64_t chunks) {
        AIGC_RUN(bias_act_double_backward, params, chunks, 1, x);
      });
  return {grad_dy, grad_x, g.dbias, g.dstrength};
}

AIGC_OPS(m) {
  m.def(
      "bias_act(Tensor x, Tensor? b, Tensor? noise, Tensor? strength, int dim, "
      "str act, float alpha, float gain, float? clamp, bool save) "
      "-> (Tensor y, Tensor mask)");
  m.def(
      "bias_act_backward(Tensor dy, Tensor? x, Tensor? b, Tensor? noise, Tensor? strength, Tensor? mask, "
      "int dim, str act, float alpha, float gain, float? clamp, "
      "bool channels_last, bool need_b, bool need_strength) "
      "-> (Tensor dx, Tensor db, Tensor dstrength)");
  m.def(
      "bias_act_double_backward(Tensor u, Tensor dy, Tensor x, Tensor? b, Tensor? noise, Tensor? strength, "
      "int dim, str act, float alpha, float gain, float? clamp, "
      "bool channels_last, bool need_b, bool need_strength) "
      "-> (Tensor grad_dy, Tensor grad_x, Tensor grad_b, Tensor grad_strength)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "bias_act", bias_act);
  AIGC_BIND(m, "bias_act_backward", bias_act_backward);
  AIGC_BIND(m, "bias_act_double_backward", bias_act_double_backward);
}

}  // namespace aigc
