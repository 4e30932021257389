// First derivatives without Python. Each equals the formula of the same op in aigc_ext/ops to the bit, and leaves to
// it whatever is not the usual case.
#include "autograd/autograd.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/mm.h>

#include <unordered_map>

namespace aigc {
namespace {

using at::Tensor;
using Stack = torch::jit::Stack;

c10::IValue optional_value(const Tensor& t) { return t.defined() ? c10::IValue(t) : c10::IValue(); }

const c10::OperatorHandle& op(const char* name) {
  return *new c10::OperatorHandle(c10::Dispatcher::singleton().findSchemaOrThrow(name, ""));
}

Stack called(const c10::OperatorHandle& handle, std::initializer_list<c10::IValue> arguments) {
  Stack stack(arguments);
  at::AutoDispatchBelowAutograd guard;  // no second derivative follows
  handle.callBoxed(stack);
  return stack;
}

Stack bias_act_backward(std::initializer_list<c10::IValue> arguments) {
  static const c10::OperatorHandle& handle = op("aigc::bias_act_backward");
  return called(handle, arguments);
}

bool is_half(const Tensor& t) { return t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16; }

// Saved: b, noise, strength, mask, x of a smooth activation. Plain: dim, act, alpha, gain, clamp, save.
std::optional<variable_list> bias_act(OpNode& node, const variable_list& saved, const variable_list& grads) {
  if (saved[1].defined()) return {};
  const Tensor& b = saved[0];
  const auto& p = node.plain;
  const bool need_b = b.defined() && node.task_should_compute_output(1);
  Stack out = bias_act_backward({grads[0],
                                 optional_value(saved[4]),
                                 optional_value(b),
                                 {},
                                 {},
                                 optional_value(saved[3]),
                                 p[0],
                                 p[1],
                                 p[2],
                                 p[3],
                                 p[4],
                                 node.flag(0),
                                 need_b,
                                 false});
  return variable_list{out[0].toTensor(), need_b ? out[1].toTensor() : Tensor(), Tensor(), Tensor()};
}

// The gradients of what goes into bias and activation behind a product, and of the bias. Saved: x, w, b, mask, product.
Stack behind_product(OpNode& node, const variable_list& saved, const Tensor& dy, size_t act, int64_t dim,
                     bool channels_last, bool need_b) {
  const auto* p = &node.plain[act];  // act, alpha, gain, clamp
  return bias_act_backward({dy,
                            optional_value(saved[4]),
                            optional_value(saved[2]),
                            {},
                            {},
                            optional_value(saved[3]),
                            dim,
                            p[0],
                            p[1],
                            p[2],
                            p[3],
                            channels_last,
                            need_b,
                            false});
}

// Plain: act, alpha, gain, clamp, save.
std::optional<variable_list> linear_act(OpNode& node, const variable_list& saved,
                                        const variable_list& grads) {
  const Tensor &dy = grads[0], &x = saved[0], &w = saved[1];
  if (!dy.defined() || grads[1].defined() || is_half(x)) return {};
  const bool need_b = saved[2].defined() && node.task_should_compute_output(2);
  Stack out = behind_product(node, saved, dy, 0, dy.dim() - 1, false, need_b);
  const Tensor dz = out[0].toTensor();
  Tensor dx, dw;
  if (node.task_should_compute_output(0)) dx = dz.matmul(w);
  if (node.task_should_compute_output(1)) {
    int64_t rows = 1;
    for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
    dw = dz.reshape({rows, w.size(0)}).t().mm(x.reshape({rows, w.size(1)}));
  }
  return variable_list{dx, dw, need_b ? out[1].toTensor() : Tensor()};
}

// Plain: stride, padding, dilation, output_padding, groups, transposed, act, alpha, gain, clamp, save.
std::optional<variable_list> convolution_act(OpNode& node, const variable_list& saved,
                                             const variable_list& grads) {
  const Tensor &dy = grads[0], &x = saved[0], &w = saved[1];
  if (!dy.defined() || grads[1].defined() || is_half(x)) return {};
  const bool need_b = saved[2].defined() && node.task_should_compute_output(2);
  Stack out = behind_product(node, saved, dy, 6, 1, node.flag(0), need_b);
  const bool need_x = node.task_should_compute_output(0), need_w = node.task_should_compute_output(1);
  Tensor dx, dw;
  if (need_x || need_w) {
    static const c10::OperatorHandle& handle = op("aigc::convolution_backward");
    const auto& p = node.plain;
    Stack both = called(handle, {out[0], x, w, p[0], p[1], p[2], p[3], p[4], p[5], need_x, need_w});
    if (need_x) dx = both[0].toTensor();
    if (need_w) dw = both[1].toTensor();
  }
  return variable_list{dx, dw, need_b ? out[1].toTensor() : Tensor()};
}

}  // namespace

First first_derivative(const std::string& name) {
  static const std::unordered_map<std::string, First> known{
      {"bias_act", bias_act}, {"linear_act", linear_act}, {"convolution_act", convolution_act}};
  const auto found = known.find(name);
  return found == known.end() ? nullptr : found->second;
}

}  // namespace aigc
