#include "batch_norm_act/batch_norm_act.h"

#include <algorithm>
#include <cmath>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kThreadElements = 32768;  // enough work for a thread
// Elements of a part: of one channel, or of all channels where they are adjacent. On the CPU a cache holds
// as many; on a GPU they are work for a block of threads.
constexpr int64_t kChannelPart = 8192, kPart = 32768, kFewestRows = 16;

// One number per channel. Replaces t by a contiguous copy if it is not contiguous.
void set_channels(OptionalTensor& t, const char* name, const Tensor& x, const void*& data, DType& dtype,
                  const char* op) {
  if (!t) return;
  check_channels(*t, name, x, op);
  t = as_format(*t, false);
  dtype = dtype_of(*t, op, name);
  data = t->data_ptr();
}

BatchNormParams make_params(const Tensor& x, const Tensor& x_dense, OptionalTensor& weight,
                            OptionalTensor& bias, OptionalTensor& mean, OptionalTensor& var, double eps,
                            const std::string& act, double alpha, double gain, std::optional<double> clamp,
                            const char* op) {
  BatchNormParams p;
  p.dtype = dtype_of(x, op, "x");
  set_activation(p, act, alpha, gain, clamp, op);
  AIGC_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps is ", eps, ", but must be at least 0 and finite");
  p.eps = eps;
  AIGC_CHECK(x.dim() >= 2, op, ": x has shape ", shape(x), ", but must be [N, C, ...]");
  const ChannelLayout layout = channel_layout(x_dense, 1);
  p.outer = layout.outer;
  p.channels = layout.channels;
  p.inner = layout.inner;
  if (channels_inside(p)) {
    p.outer_per_part = max(kFewestRows, kPart / max(p.channels, 1));
  } else {
    p.inner_per_part = std::clamp<int64_t>(p.inner, 1, kChannelPart);
    p.outer_per_part = max(1, kChannelPart / p.inner_per_part);
  }
  p.outer_per_part = std::clamp<int64_t>(p.outer_per_part, 1, max(p.outer, 1));
  set_channels(weight, "weight", x, p.weight, p.weight_dtype, op);
  set_channels(bias, "bias", x, p.bias, p.bias_dtype, op);
  DType var_dtype = DType::float64;
  set_channels(mean, "mean", x, p.mean, p.statistics_dtype, op);
  set_channels(var, "var", x, p.var, var_dtype, op);
  AIGC_CHECK(mean.has_value() == var.has_value(), op, ": mean and var must be given together");
  AIGC_CHECK(!mean || var_dtype == p.statistics_dtype, op, ": mean and var must be of one dtype");
  p.x = x_dense.data_ptr();
  return p;
}

int64_t sum_items(const BatchNormParams& p) { return part_count(p) * (channels_inside(p) ? 1 : p.channels); }

int64_t sum_grain(const BatchNormParams& p) {
  const int64_t part = p.outer_per_part * p.inner_per_part * (channels_inside(p) ? p.channels : 1);
  return grain_of(kThreadElements, part);
}

int64_t row_items(const BatchNormParams& p) {
  return channels_inside(p) ? p.outer : p.outer * p.channels * piece_count(p);
}

int64_t row_grain(const BatchNormParams& p) {
  return grain_of(kThreadElements, channels_inside(p) ? p.channels : p.inner);
}

Tensor partials_for(const BatchNormParams& p, const Tensor& x) {
  return empty_1d(x, part_count(p) * 2 * p.channels, ScalarType::Double);
}

Tensor factors_for(const BatchNormParams& p, const Tensor& x) {
  return empty_1d(x, kFactors * p.channels, acc_type(p.dtype));
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& x_any, OptionalTensor weight,
                                                  OptionalTensor bias, OptionalTensor mean,
                                                  OptionalTensor var, double eps, StringHandle act_handle,
                                                  double alpha, double gain, std::optional<double> clamp) {
  const std::string act = take_string(act_handle);
  const Tensor x = as_dense(x_any);
  BatchNormParams p =
      make_params(x_any, x, weight, bias, mean, var, eps, act, alpha, gain, clamp, "batch_norm_act");
  p.of_batch = !mean;
  const Tensor y = torch::stable::empty_like(x);
  Tensor batch_mean = empty_1d(x, p.of_batch ? p.channels : 0, ScalarType::Double);
  Tensor batch_var = empty_1d(x, p.of_batch ? p.channels : 0, ScalarType::Double);
  if (x.numel() == 0) {
    torch::stable::zero_(batch_mean);
    torch::stable::zero_(batch_var);
    return {y, batch_mean, batch_var};
  }
  const Tensor factors = factors_for(p, x);
  p.factors = factors.data_ptr();
  p.y = y.data_ptr();
  OptionalTensor partials;
  if (p.of_batch) {
    partials = partials_for(p, x);
    p.partials = static_cast<double*>(partials->data_ptr());
    p.batch_mean = static_cast<double*>(batch_mean.data_ptr());
    p.batch_var = static_cast<double*>(batch_var.data_ptr());
    AIGC_RUN(batch_norm_statistics, p, sum_items(p), sum_grain(p), x);
  }
  AIGC_RUN(batch_norm_join_statistics, p, p.channels, 1024, x);
  AIGC_RUN(batch_norm_act_forward, p, row_items(p), row_grain(p), x);
  return {y, batch_mean, batch_var};
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act_backward(
    const Tensor& dy_any, const Tensor& x_any, OptionalTensor weight, OptionalTensor bias,
    OptionalTensor mean, OptionalTensor var, bool of_batch, double eps, StringHandle act_handle, double alpha,
    double gain, std::optional<double> clamp, bool need_weight, bool need_bias) {
  constexpr const char* op = "batch_norm_act_backward";
  const std::string act = take_string(act_handle);
  const Tensor x = as_dense(x_any);
  BatchNormParams p = make_params(x_any, x, weight, bias, mean, var, eps, act, alpha, gain, clamp, op);
  AIGC_CHECK(mean, op, ": mean and var must be given");
  p.of_batch = of_batch;
  check_same_kind(dy_any, "dy", x, "x", op);
  check_same_shape(dy_any, "dy", x, "x", op);
  AIGC_CHECK((weight || !need_weight) && (bias || !need_bias), op,
             ": the gradient of a parameter that there is none of");
  const Tensor dy = as_format(dy_any, is_channels_last(x));
  const Tensor dx = torch::stable::empty_like(x);
  Tensor dweight = empty_1d(x, need_weight ? p.channels : 0, (weight ? *weight : x).scalar_type());
  Tensor dbias = empty_1d(x, need_bias ? p.channels : 0, (bias ? *bias : x).scalar_type());
  if (x.numel() == 0) {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
    return {dx, dweight, dbias};
  }
  const Tensor factors = factors_for(p, x);
  p.factors = factors.data_ptr();
  p.dy = dy.data_ptr();
  p.y = dx.data_ptr();
  p.dweight = need_weight ? dweight.data_ptr() : nullptr;
  p.dbias = need_bias ? dbias.data_ptr() : nullptr;
  AIGC_RUN(batch_norm_join_statistics, p, p.channels, 1024, x);
  OptionalTensor partials;
  if (of_batch || need_weight || need_bias) {
    partials = partials_for(p, x);
    p.partials = static_cast<double*>(partials->data_ptr());
    AIGC_RUN(batch_norm_gradient_sums, p, sum_items(p), sum_grain(p), x);
    AIGC_RUN(batch_norm_join_gradients, p, p.channels, 1024, x);
  }
  AIGC_RUN(batch_norm_act_backward, p, row_items(p), row_grain(p), x);
  return {dx, dweight, dbias};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, float eps, "
      "str act, float alpha, float gain, float? clamp) "
      "-> (Tensor y, Tensor batch_mean, Tensor batch_var)");
  m.def(
      "batch_norm_act_backward(Tensor dy, Tensor x, "
      "Tensor? weight, Tensor? bias, Tensor? mean, Tensor? var, bool of_batch, float eps, "
      "str act, float alpha, float gain, float? clamp, bool need_weight, bool need_bias) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "batch_norm_act", batch_norm_act);
  AIGC_BIND(m, "batch_norm_act_backward", batch_norm_act_backward);
}

}  // namespace aigc
