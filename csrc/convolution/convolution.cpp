// A convolution, or its transpose, with bias and activation, and its gradients: PyTorch's, for images of two
// dimensions, with checks that name the argument. In C++ because in Python the way to PyTorch's and back costs as
// much as a small convolution. Bias and activation are bias_act's kernel, in place on the product unless the
// backward needs that (for f' of smooth activations).
#include <algorithm>
#include <array>
#include <vector>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

using Pair = std::vector<int64_t>;  // [y, x]

struct Geometry {
  Pair stride, padding, dilation, output_padding;
  int64_t groups;
  bool transposed;
};

std::array<int64_t, 4> output_size(const Tensor& x, const Tensor& w, const Geometry& g, const char* op) {
  AIGC_CHECK(x.dim() == 4 && x.size(1) > 0 && x.size(2) > 0 && x.size(3) > 0, op, ": x has shape ", shape(x),
             ", but must be [N, C, H, W] with C, H and W of at least 1");
  AIGC_CHECK(w.dim() == 4 && w.size(0) > 0 && w.size(1) > 0 && w.size(2) > 0 && w.size(3) > 0, op,
             ": w has shape ", shape(w), ", but must be ",
             g.transposed ? "[in, out / groups, kH, kW]" : "[out, in / groups, kH, kW]", ", each at least 1");
  AIGC_CHECK(g.groups >= 1 && w.size(0) % g.groups == 0, op, ": groups is ", g.groups, ", but must divide ",
             w.size(0), ", the first size of w");
  const int64_t channels = g.transposed ? w.size(0) : w.size(1) * g.groups;
  AIGC_CHECK(x.size(1) == channels, op, ": x has shape ", shape(x), ", but must have ", channels,
             " channels for a w of shape ", shape(w), " and groups ", g.groups);
  for (const Pair* pair : {&g.stride, &g.padding, &g.dilation, &g.output_padding})
    AIGC_CHECK(pair->size() == 2, op, ": stride, padding, dilation and output_padding must be [y, x]");
  std::array<int64_t, 4> size{x.size(0), g.transposed ? w.size(1) * g.groups : w.size(0)};
  for (int d = 0; d < 2; ++d) {
    const char* axis = d == 0 ? "y" : "x";
    const int64_t stride = g.stride[d], padding = g.padding[d], dilation = g.dilation[d];
    const int64_t extra = g.output_padding[d], taps = w.size(2 + d),
                  reach = size_product({dilation, taps - 1});
    AIGC_CHECK(stride >= 1 && dilation >= 1 && padding >= 0, op, ": along ", axis, ", stride is ", stride,
               ", dilation ", dilation, ", padding ", padding, ", but they must be at least 1, 1 and 0");
    const int64_t paddings = size_product({2, padding});
    AIGC_CHECK(g.transposed || extra == 0, op, ": output_padding along ", axis, " is ", extra,
               ", but only a transposed convolution has one");
    int64_t& side = size[2 + d];
    if (g.transposed) {
      AIGC_CHECK(extra >= 0 && extra < max(stride, dilation), op, ": output_padding along ", axis, " is ",
                 extra, ", but must be from 0 to ", max(stride, dilation) - 1,
                 ", less than stride or dilation");
      side = size_sum({size_product({x.size(2 + d) - 1, stride}), -paddings, reach, extra, 1});
    } else {
      const int64_t room = size_sum({x.size(2 + d), paddings, -reach, -1});
      side = room < 0 ? 0 : room / stride + 1;
    }
    AIGC_CHECK(side >= 1, op, ": x has shape ", shape(x), ", but along ", axis,
               " nothing is left by a filter of ", taps, " with dilation ", dilation, " and padding ",
               padding);
  }
  size_product({size.data(), size.size()});
  return size;
}

// MKL, which PyTorch's own convolution is a product by, uses AVX-512 on Intel's processors only.
bool is_slow_in_mkl() {
#if defined(__x86_64__)
  return active_isa() == Isa::avx512 && !__builtin_cpu_is("intel");
#else
  return false;
#endif
}

// The dilation to tell PyTorch. In float32 and on one thread, it sends 1x1 convolutions of fewer than 16 images
// to its own implementation, unless they are dilated, and others to oneDNN. A filter of one tap is the same with
// any dilation. The bounds are those from which on forward and backward together were faster by oneDNN:
// on an AMD EPYC of family 26, up to 1.8 times for contiguous images and 2.1 for channels-last ones, whose own
// implementation copies them (5.9 times from 3 channels).
Pair dilation_for(const Tensor& x, const Tensor& w, const Geometry& g, bool channels_last) {
  constexpr int64_t kFewImages = 16;
  const bool one_tap = w.size(2) == 1 && w.size(3) == 1 && g.stride[0] == 1 && g.stride[1] == 1;
  if (kOnGpu || !one_tap || g.transposed || x.size(0) >= kFewImages || x.scalar_type() != ScalarType::Float)
    return g.dilation;
  const double products = double(x.numel()) * double(w.size(0)) / double(g.groups);
  const bool pays = channels_last ? products >= (active_isa() == Isa::avx512 ? 2e6 : 3e6)
                                  : products >= 4e6 && min(w.size(0), w.size(1)) >= 64 && is_slow_in_mkl();
  return pays ? Pair{2, 2} : g.dilation;
}

Tensor convolve(const Tensor& x, const Tensor& w, const OptionalTensor& b, const Geometry& g,
                const std::array<int64_t, 4>& size) {
  const bool channels_last = is_channels_last(x) || is_channels_last(w);
  if (x.size(0) == 0) return empty_dense(x, size, channels_last);
  using torch::stable::detail::from;
  std::array<StableIValue, 9> stack{from(x),
                                    from(w),
                                    from(b),
                                    from(g.stride),
                                    from(g.padding),
                                    from(dilation_for(x, w, g, channels_last)),
                                    from(g.transposed),
                                    from(g.output_padding),
                                    from(g.groups)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution", "", stack.data(), TORCH_ABI_VERSION));
  // PyTorch does not always choose the format that its arguments have.
  return as_format(torch::stable::detail::to<Tensor>(stack[0]), channels_last);
}

std::array<int64_t, 4> check_forward(const Tensor& x, const Tensor& w, const OptionalTensor& b,
                                     const Geometry& g, const char* op) {
  dtype_of(x, op, "x");
  const std::array<int64_t, 4> size = output_size(x, w, g, op);
  check_same_kind(w, "w", x, "x", op);
  if (b) {
    check_same_kind(*b, "b", x, "x", op);
    check_vector(*b, "b", size[1], op);
  }
  return size;
}

Tensor convolution(const Tensor& x, const Tensor& w, const OptionalTensor& b, Pair stride, Pair padding,
                   Pair dilation, Pair output_padding, int64_t groups, bool transposed) {
  const Geometry g{stride, padding, dilation, output_padding, groups, transposed};
  return convolve(x, w, b, g, check_forward(x, w, b, g, "convolution"));
}

// Returns y, the product if the backward needs it (else an empty tensor), and bias_act's mask. For half types
// the bias is part of the product: that is rounded when it is stored, and at least its sign is right then.
std::tuple<Tensor, Tensor, Tensor> convolution_act(const Tensor& x, const Tensor& w, OptionalTensor b,
                                                   Pair stride, Pair padding, Pair dilation,
                                                   Pair output_padding, int64_t groups, bool transposed,
                                                   StringHandle act_handle, double alpha, double gain,
                                                   std::optional<double> clamp, bool save) {
  const std::string act = take_string(act_handle);
  constexpr const char* op = "convolution_act";
  BiasActParams p;
  p.dtype = dtype_of(x, op, "x");
  set_activation(p, act, alpha, gain, clamp, op);
  const Geometry g{stride, padding, dilation, output_padding, groups, transposed};
  const std::array<int64_t, 4> size = check_forward(x, w, b, g, op);
  const bool bias_in_product = b && (p.dtype == DType::float16 || p.dtype == DType::bfloat16);
  const Tensor product = convolve(x, w, bias_in_product ? b : std::nullopt, g, size);
  if (bias_in_product) b = std::nullopt;
  const bool keep_product = save && !is_piecewise_linear(p.act);
  const Tensor y = keep_product ? torch::stable::empty_like(product) : product;
  const Tensor mask = bias_act_into(y, product, b, std::nullopt, std::nullopt, 1, p, save, op);
  return {y, keep_product ? product : empty_1d(x, 0, x.scalar_type()), mask};
}

std::tuple<Tensor, Tensor> convolution_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                Pair stride, Pair padding, Pair dilation, Pair output_padding,
                                                int64_t groups, bool transposed, bool need_x, bool need_w) {
  constexpr const char* op = "convolution_backward";
  dtype_of(x, op, "x");
  const Geometry g{stride, padding, dilation, output_padding, groups, transposed};
  const std::array<int64_t, 4> size = output_size(x, w, g, op);
  check_same_kind(w, "w", x, "x", op);
  check_same_kind(dy, "dy", x, "x", op);
  AIGC_CHECK(dy.dim() == 4 && std::equal(size.begin(), size.end(), dy.sizes().begin()), op, ": dy has shape ",
             shape(dy), ", but must be ", shape(Sizes(size.data(), size.size())));
  const bool x_last = is_channels_last(x), w_last = is_channels_last(w);
  if (x.size(0) == 0 || !(need_x || need_w)) {
    const Tensor dx = need_x ? empty_dense(x, x.sizes(), x_last) : empty_1d(x, 0, x.scalar_type());
    if (!need_w) return {dx, empty_1d(w, 0, w.scalar_type())};
    Tensor dw = empty_dense(w, w.sizes(), w_last);
    torch::stable::zero_(dw);
    return {dx, dw};
  }
  dilation = dilation_for(x, w, g, x_last || w_last);
  using torch::stable::detail::from;
  using Mask = torch::headeronly::HeaderOnlyArrayRef<bool>;
  const bool mask[] = {need_x, need_w, false};  // of x, w and the bias
  std::array<StableIValue, 11> stack{
      from(dy),           from(x),        from(w),          from(std::optional<Pair>()), from(stride),
      from(padding),      from(dilation), from(transposed), from(output_padding),        from(groups),
      from(Mask(mask, 3))};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::convolution_backward", "", stack.data(), TORCH_ABI_VERSION));
  using torch::stable::detail::to;
  const Tensor dx = to<Tensor>(stack[0]), dw = to<Tensor>(stack[1]);
  to<Tensor>(stack[2]);
  return {need_x ? as_format(dx, x_last) : empty_1d(x, 0, x.scalar_type()),
          need_w ? as_format(dw, w_last) : empty_1d(w, 0, w.scalar_type())};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "convolution(Tensor x, Tensor w, Tensor? b, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt[] output_padding, SymInt groups, bool transposed) -> Tensor");
  m.def(
      "convolution_act(Tensor x, Tensor w, Tensor? b, SymInt[] stride, SymInt[] padding, SymInt[] dilation, "
      "SymInt[] output_padding, SymInt groups, bool transposed, str act, float alpha, float gain, "
      "float? clamp, bool save) -> (Tensor y, Tensor product, Tensor mask)");
  m.def(
      "convolution_backward(Tensor dy, Tensor x, Tensor w, SymInt[] stride, SymInt[] padding, SymInt[] "
      "dilation, SymInt[] output_padding, SymInt groups, bool transposed, bool need_x, bool need_w) -> "
      "(Tensor dx, Tensor dw)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "convolution", convolution);
  AIGC_BIND(m, "convolution_act", convolution_act);
  AIGC_BIND(m, "convolution_backward", convolution_backward);
}

}  // namespace aigc
