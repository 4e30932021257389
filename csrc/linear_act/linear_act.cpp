// y = bias_act(x @ w.T, b): the product is PyTorch's GEMM, bias and activation are bias_act's kernel. It runs
// in place on the product unless the backward needs that (for f' of smooth activations).
#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

Tensor linear(const Tensor& x, const Tensor& w, const OptionalTensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(x), from(w), from(b)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linear", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Returns y, the product if the backward needs it (else an empty tensor), and bias_act's mask. For half types
// the bias is part of the product.
std::tuple<Tensor, Tensor, Tensor> linear_act(const Tensor& x, const Tensor& w, OptionalTensor b,
                                              StringHandle act_handle, double alpha, double gain,
                                              std::optional<double> clamp, bool save) {
  const std::string act = take_string(act_handle);
  constexpr const char* op = "linear_act";
  BiasActParams p;
  p.dtype = dtype_of(x, op, "x");
  set_activation(p, act, alpha, gain, clamp, op);
  check_same_kind(w, "w", x, "x", op);
  AIGC_CHECK(w.dim() == 2, op, ": w has shape ", shape(w), ", but must be [out_features, in_features]");
  AIGC_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) == w.size(1), op, ": x has shape ", shape(x),
             ", but its last dimension must be ", w.size(1), ", the in_features of w ", shape(w));
  if (b) {
    check_same_kind(*b, "b", x, "x", op);
    check_vector(*b, "b", w.size(0), op);
  }
  // A product in a half type is rounded when it is stored. With the bias in it, at least its sign is right.
  const bool bias_in_product = b && (p.dtype == DType::float16 || p.dtype == DType::bfloat16);
  const Tensor product = as_format(linear(x, w, bias_in_product ? b : std::nullopt), false);
  if (bias_in_product) b = std::nullopt;
  const bool keep_product = save && !is_piecewise_linear(p.act);
  const Tensor y = keep_product ? torch::stable::empty_like(product) : product;
  const Tensor mask = bias_act_into(y, product, b, std::nullopt, std::nullopt, -1, p, save, op);
  return {y, keep_product ? product : empty_1d(x, 0, x.scalar_type()), mask};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "linear_act(Tensor x, Tensor w, Tensor? b, str act, float alpha, float gain, float? clamp, bool save) "
      "-> (Tensor y, Tensor product, Tensor mask)");
}

AIGC_IMPL(m) { AIGC_BIND(m, "linear_act", linear_act); }

}  // namespace aigc
