#include "group_norm_act/group_norm_act.h"

#include <algorithm>
#include <cmath>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

using Stage = GroupNormStage;

constexpr Stage kForward[] = {Stage::statistics, Stage::join_statistics, Stage::forward};
constexpr Stage kBackward[] = {Stage::join_statistics, Stage::gradient_sums, Stage::join_gradients,
                               Stage::backward};
constexpr Stage kDoubleBackward[] = {Stage::join_statistics, Stage::cotangent_sums, Stage::join_cotangents,
                                     Stage::second_sums,     Stage::join_second,    Stage::double_backward};

constexpr int64_t kThreadElements = 32768;  // enough work for a thread
// Elements of a part of a channel, and of the pixels of a sample: as many as a cache holds, or work for a
// block of threads.
constexpr int64_t kChannelPart = 8192, kPixelPart = kOnGpu ? 8192 : 32768, kFewestPixels = 16;

// What the ops have in common. The tensors that the params point to live here.
struct GroupNormCall {
  const char* op;
  GroupNormParams p;
  Tensor x;
  std::vector<Tensor> kept;
  OptionalTensor mean, rstd;

  GroupNormCall(const char* name, const Tensor& x_any, int64_t num_groups, double eps, const std::string& act,
                double alpha, double gain, std::optional<double> clamp)
      : op(name), x(x_any) {
    p.dtype = dtype_of(x_any, op, "x");
    set_activation(p, act, alpha, gain, clamp, op);
    AIGC_CHECK(eps >= 0 && std::isfinite(eps), op, ": eps is ", eps, ", but must be at least 0 and finite");
    p.eps = eps;
    AIGC_CHECK(x_any.dim() >= 2, op, ": x has shape ", shape(x_any), ", but must be [N, C, ...]");
    p.samples = x_any.size(0);
    p.channels = x_any.size(1);
    AIGC_CHECK(num_groups >= 1 && p.channels % num_groups == 0, op, ": num_groups is ", num_groups,
               ", but must be at least 1 and divide the ", p.channels, " channels of x");
    p.groups = num_groups;
    x = as_dense(x_any);
    p.channels_inside = channel_layout(x, 1).inner == 1;
    p.inner = 1;
    for (int64_t d = 2; d < x.dim(); ++d) p.inner *= x.size(d);
    const int64_t part =
        p.channels_inside ? max(kFewestPixels, kPixelPart / max(p.channels, 1)) : kChannelPart;
    p.inner_per_part = std::clamp<int64_t>(part, 1, max(p.inner, 1));
    p.parts = ceil_div(p.inner, p.inner_per_part);
    p.group_channels = p.channels / p.groups;
    p.x = x.data_ptr();
  }

  // A number for each channel.
  void set_channels(const OptionalTensor& t, const char* name, GroupNormNumbers& numbers) {
    if (!t) return;
    check_channels(*t, name, x, op);
    set(*t, name, numbers);
  }
  // A number for each channel of each sample.
  void set_samples(const OptionalTensor& t, const char* name, GroupNormNumbers& numbers) {
    if (!t) return;
    AIGC_CHECK(t->dim() == 2 && t->size(0) == p.samples && t->size(1) == p.channels, op, ": ", name,
               " has shape ", shape(*t), ", but must be [", p.samples, ", ", p.channels,
               "] for an x of shape ", shape(x));
    set(*t, name, numbers);
  }
  void set_numbers(const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& scale,
                   const OptionalTensor& shift) {
    set_channels(weight, "weight", p.weight);
    set_channels(bias, "bias", p.bias);
    set_samples(scale, "scale", p.scale);
    set_samples(shift, "shift", p.shift);
  }
  // A tensor like x.
  const void* elements(const OptionalTensor& t, const char* name) {
    if (!t) return nullptr;
    check_same_kind(*t, name, x, "x", op);
    check_same_shape(*t, name, x, "x", op);
    kept.push_back(as_format(*t, is_channels_last(x)));
    return kept.back().data_ptr();
  }

  void set_statistics(const Tensor& given_mean, const Tensor& given_rstd) {
    p.statistics_given = true;
    for (const auto& [t, name] : {std::pair(&given_mean, "mean"), std::pair(&given_rstd, "rstd")}) {
      AIGC_CHECK(t->scalar_type() == ScalarType::Double, op, ": ", name, " is ", dtype_name(t->scalar_type()),
                 ", but must be float64");
      AIGC_CHECK(t->dim() == 2 && t->size(0) == p.samples && t->size(1) == p.groups, op, ": ", name,
                 " has shape ", shape(*t), ", but must be [", p.samples, ", ", p.groups,
                 "] for an x of shape ", shape(x));
      kept.push_back(as_format(*t, false));
      (t == &given_mean ? p.mean : p.rstd) = static_cast<double*>(kept.back().data_ptr());
    }
  }

  // The gradient of a parameter. One that is not asked for is empty.
  Tensor gradient_of(const OptionalTensor& parameter, const char* name, bool needed,
                     GroupNormGradient& gradient) {
    AIGC_CHECK(parameter || !needed, op, ": the gradient of ", name, " is asked for, but ", name,
               " is not given");
    if (!needed) return empty_1d(x, 0, (parameter ? *parameter : x).scalar_type());
    Tensor result = empty_strided(x, parameter->sizes(), dense_strides(parameter->sizes(), false),
                                  parameter->scalar_type());
    gradient = {result.data_ptr(), dtype_of(result, op, name)};
    return result;
  }
  Tensor gradient_of_residual(const OptionalTensor& residual, bool needed) {
    AIGC_CHECK(residual || !needed, op, ": the gradient of residual is asked for, but residual is not given");
    if (!needed) return empty_1d(x, 0, x.scalar_type());
    Tensor result = torch::stable::empty_like(x);
    p.dresidual = result.data_ptr();
    return result;
  }

  // All units through all stages; where there are too few for the threads, stage by stage.
  template <int n>
  void run(const Stage (&stages)[n]) {
    const Tensor factors = empty_1d(x, p.samples * kFactors * p.channels, acc_type(p.dtype));
    p.factors = factors.data_ptr();
    const int64_t of_statistics = unit_count(p) * statistics_parts(p) * (p.channels_inside ? p.channels : 1);
    const int64_t partial_count =
        p.statistics_given ? p.samples * p.parts * p.sums * p.channels : 2 * of_statistics;
    const int64_t cotangent_count = p.v ? 2 * p.samples * p.groups : 0;
    const Tensor sums = empty_1d(x, partial_count + cotangent_count, ScalarType::Double);
    p.partials = static_cast<double*>(sums.data_ptr());
    p.cotangents = p.partials + partial_count;
    const int64_t numel = x.numel();
    const auto run_stage = [&](Stage stage) {
      const int64_t items = item_count(p, stage);
      p.stage = stage;
      AIGC_RUN(group_norm_stage, p, items, grain_of(kThreadElements, numel / items), x);
    };
    bool in_units = false;
    if constexpr (!kOnGpu) {
      const int64_t units = unit_count(p), threads = torch::stable::get_num_threads();
      in_units = units % threads == 0 || units >= 4 * threads;
      if (in_units) {
        p.stages = stages;
        p.stage_count = n;
        AIGC_RUN(group_norm_units, p, units, grain_of(kThreadElements, numel / units), x);
      }
    }
    if (!in_units)
      for (const Stage stage : stages) run_stage(stage);
    if (p.dweight.data || p.dbias.data) run_stage(Stage::parameters);
  }

 private:
  void set(const Tensor& t, const char* name, GroupNormNumbers& numbers) {
    kept.push_back(as_format(t, false));
    numbers = {kept.back().data_ptr(), dtype_of(t, op, name)};
  }
};

std::tuple<Tensor, Tensor, Tensor> group_norm_act(const Tensor& x, OptionalTensor weight, OptionalTensor bias,
                                                  OptionalTensor scale, OptionalTensor shift,
                                                  OptionalTensor residual, int64_t num_groups, double eps,
                                                  StringHandle act_handle, double alpha, double gain,
                                                  std::optional<double> clamp) {
  const std::string act = take_string(act_handle);
  GroupNormCall call("group_norm_act", x, num_groups, eps, act, alpha, gain, clamp);
  GroupNormParams& p = call.p;
  call.set_numbers(weight, bias, scale, shift);
  p.residual = call.elements(residual, "residual");
  const Tensor y = torch::stable::empty_like(call.x);
  const int64_t sizes[] = {p.samples, p.groups}, strides[] = {p.groups, 1};
  Tensor mean = empty_strided(x, sizes, strides, ScalarType::Double);
  Tensor rstd = empty_strided(x, sizes, strides, ScalarType::Double);
  if (x.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(rstd);
    return {y, mean, rstd};
  }
  p.mean = static_cast<double*>(mean.data_ptr());
  p.rstd = static_cast<double*>(rstd.data_ptr());
  p.y = y.data_ptr();
  call.run(kForward);
  return {y, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_act_backward(
    const Tensor& dy, const Tensor& x, OptionalTensor weight, OptionalTensor bias, OptionalTensor scale,
    OptionalTensor shift, OptionalTensor residual, const Tensor& mean, const Tensor& rstd, int64_t num_groups,
    double eps, StringHandle act_handle, double alpha, double gain, std::optional<double> clamp,
    bool need_weight, bool need_bias, bool need_scale, bool need_shift, bool need_residual) {
  const std::string act = take_string(act_handle);
  GroupNormCall call("group_norm_act_backward", x, num_groups, eps, act, alpha, gain, clamp);
  GroupNormParams& p = call.p;
  call.set_numbers(weight, bias, scale, shift);
  p.residual = call.elements(residual, "residual");
  p.dy = call.elements(dy, "dy");
  call.set_statistics(mean, rstd);
  const Tensor dx = torch::stable::empty_like(call.x);
  Tensor dweight = call.gradient_of(weight, "weight", need_weight, p.dweight);
  Tensor dbias = call.gradient_of(bias, "bias", need_bias, p.dbias);
  Tensor dscale = call.gradient_of(scale, "scale", need_scale, p.dscale);
  Tensor dshift = call.gradient_of(shift, "shift", need_shift, p.dshift);
  Tensor dresidual = call.gradient_of_residual(residual, need_residual);
  if (x.numel() == 0) {
    for (Tensor* t : {&dweight, &dbias, &dscale, &dshift}) torch::stable::zero_(*t);
  } else {
    p.y = dx.data_ptr();
    call.run(kBackward);
  }
  return {dx, dweight, dbias, dscale, dshift, dresidual};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_act_double_backward(
    const Tensor& v, OptionalTensor v_weight, OptionalTensor v_bias, OptionalTensor v_scale,
    OptionalTensor v_shift, OptionalTensor v_residual, const Tensor& dy, const Tensor& x,
    OptionalTensor weight, OptionalTensor bias, OptionalTensor scale, OptionalTensor shift,
    OptionalTensor residual, const Tensor& mean, const Tensor& rstd, int64_t num_groups, double eps,
    StringHandle act_handle, double alpha, double gain, std::optional<double> clamp, bool need_weight,
    bool need_bias, bool need_scale, bool need_shift, bool need_residual) {
  const std::string act = take_string(act_handle);
  GroupNormCall call("group_norm_act_double_backward", x, num_groups, eps, act, alpha, gain, clamp);
  GroupNormParams& p = call.p;
  call.set_numbers(weight, bias, scale, shift);
  p.residual = call.elements(residual, "residual");
  p.dy = call.elements(dy, "dy");
  call.set_statistics(mean, rstd);
  p.v = call.elements(v, "v");
  call.set_channels(v_weight, "v_weight", p.v_weight);
  call.set_channels(v_bias, "v_bias", p.v_bias);
  call.set_samples(v_scale, "v_scale", p.v_scale);
  call.set_samples(v_shift, "v_shift", p.v_shift);
  p.v_residual = call.elements(v_residual, "v_residual");
  p.sums = sums_of(Stage::second_sums);
  const Tensor grad_dy = torch::stable::empty_like(call.x), grad_x = torch::stable::empty_like(call.x);
  Tensor grad_weight = call.gradient_of(weight, "weight", need_weight, p.dweight);
  Tensor grad_bias = call.gradient_of(bias, "bias", need_bias, p.dbias);
  Tensor grad_scale = call.gradient_of(scale, "scale", need_scale, p.dscale);
  Tensor grad_shift = call.gradient_of(shift, "shift", need_shift, p.dshift);
  Tensor grad_residual = call.gradient_of_residual(residual, need_residual);
  if (x.numel() == 0) {
    for (Tensor* t : {&grad_weight, &grad_bias, &grad_scale, &grad_shift}) torch::stable::zero_(*t);
  } else {
    p.grad_dy = grad_dy.data_ptr();
    p.y = grad_x.data_ptr();
    call.run(kDoubleBackward);
  }
  return {grad_dy, grad_x, grad_weight, grad_bias, grad_scale, grad_shift, grad_residual};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "group_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, "
      "Tensor? residual, int num_groups, float eps, str act, float alpha, float gain, float? clamp) "
      "-> (Tensor y, Tensor mean, Tensor rstd)");
  m.def(
      "group_norm_act_backward(Tensor dy, Tensor x, "
      "Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, "
      "Tensor mean, Tensor rstd, int num_groups, float eps, "
      "str act, float alpha, float gain, float? clamp, "
      "bool need_weight, bool need_bias, bool need_scale, bool need_shift, bool need_residual) "
      "-> (Tensor dx, Tensor dweight, Tensor dbias, Tensor dscale, Tensor dshift, Tensor dresidual)");
  m.def(
      "group_norm_act_double_backward(Tensor v, "
      "Tensor? v_weight, Tensor? v_bias, Tensor? v_scale, Tensor? v_shift, Tensor? v_residual, "
      "Tensor dy, Tensor x, Tensor? weight, Tensor? bias, Tensor? scale, Tensor? shift, Tensor? residual, "
      "Tensor mean, Tensor rstd, int num_groups, float eps, "
      "str act, float alpha, float gain, float? clamp, "
      "bool need_weight, bool need_bias, bool need_scale, bool need_shift, bool need_residual) "
      "-> (Tensor grad_dy, Tensor grad_x, Tensor grad_weight, Tensor grad_bias, Tensor grad_scale, "
      "Tensor grad_shift, Tensor grad_residual)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "group_norm_act", group_norm_act);
  AIGC_BIND(m, "group_norm_act_backward", group_norm_act_backward);
  AIGC_BIND(m, "group_norm_act_double_backward", group_norm_act_double_backward);
}

}  // namespace aigc
