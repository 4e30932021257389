// aigc::linear_act through the dispatcher, checked against LibTorch's own ops.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>

int main() {
  const auto x = at::randn({8, 16}), w = at::randn({32, 16}), b = at::randn({32});
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aigc::linear_act", "");
  // x, w, b, act, alpha, gain, clamp (None), and whether a backward will follow
  torch::jit::Stack stack = {x, w, b, std::string("lrelu"), 0.2, 1.0, c10::IValue(), false};
  op.callBoxed(stack);
  const auto y = stack[0].toTensor();
  const auto expected = at::leaky_relu(at::linear(x, w, b), 0.2);
  const double error = (y - expected).abs().max().item<double>();
  std::printf("largest difference %g\n", error);
  return error < 1e-5 ? 0 : 1;
}
