// A chain of linear layers with activations as one op, and its derivatives: the products are PyTorch's GEMMs,
// everything between them is bias_act's kernels. With layers of about 100 features, calls cost as much as
// arithmetic: the gain is one op forward and one backward.
//
//     z_i = h_{i-1} W_i^T + b_i      h_i = f_i(z_i)      h_0 = x, y = h_n                          forward
//     dz_i = dh_i * f_i'(z_i)        dh_{i-1} = dz_i W_i     dW_i = dz_i^T h_{i-1}                 backward
// The double backward differentiates <u, dx>. With v_0 = u, up the layers and then down again,
//     v_i = (v_{i-1} W_i^T) * f_i'(z_i)          grad_dy = v_n
//     t_i = (v_{i-1} W_i^T) * dh_i * f_i''(z_i) + (t_{i+1} W_{i+1}) * f_i'(z_i)        the gradient of z_i
//     grad_W_i = dz_i^T v_{i-1} + t_i^T h_{i-1}      grad_b_i = sum of t_i      grad_x = t_1 W_1
#include <array>
#include <initializer_list>
#include <sstream>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

constexpr size_t kMaxLayers = 62;  // need_w and need_b have a bit for each

Tensor call_aten(const char* name, std::initializer_list<StableIValue> arguments) {
  std::vector<StableIValue> stack(arguments);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor mm(const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  return call_aten("aten::mm", {from(a), from(b)});
}

Tensor sum(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

Tensor sum_of_rows(const Tensor& rows) {
  const int64_t rows_dim = 0;
  return torch::stable::sum(rows, Sizes(&rows_dim, 1));
}

// A view of t's memory that begins with its first element.
Tensor view(const Tensor& t, std::array<int64_t, 2> sizes, std::array<int64_t, 2> strides) {
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch__reinterpret_tensor(t.get(), 2, sizes.data(), strides.data(), 0, &handle));
  return Tensor(handle);
}

Tensor transposed(const Tensor& t) { return view(t, {t.size(1), t.size(0)}, {t.stride(1), t.stride(0)}); }

int64_t row_count(const Tensor& t) {
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < t.dim(); ++d) rows = size_product({rows, t.size(d)});
  return rows;
}

Tensor as_rows(const Tensor& t, int64_t features) {
  return view(as_format(t, false), {row_count(t), features}, {max(features, 1), 1});
}

// `rows` in the shape of `like`, except for the last dimension.
Tensor in_shape_of(const Tensor& like, const Tensor& rows) {
  if (like.dim() == 2) return rows;
  std::vector<int64_t> sizes(like.sizes().begin(), like.sizes().end());
  sizes.back() = rows.size(1);
  return torch::stable::view(rows, sizes);
}

struct Layer {
  const Tensor &w, &b;
  BiasActParams act;

  bool smooth() const { return !is_piecewise_linear(act.act); }
  // A product in a half type is rounded when it is stored. With the bias in it, at least its sign is right.
  bool bias_in_product() const { return act.dtype == DType::float16 || act.dtype == DType::bfloat16; }
  OptionalTensor late_bias() const { return bias_in_product() ? OptionalTensor() : OptionalTensor(b); }
};

std::vector<Layer> make_layers(const Tensor& x, const TensorList& weights, const TensorList& biases,
                               StringHandle acts_handle, const std::vector<double>& alphas,
                               const std::vector<double>& gains, const char* op) {
  std::istringstream acts(take_string(acts_handle));
  const size_t count = weights.size();
  AIGC_CHECK(count >= 1 && count <= kMaxLayers, op, ": weights has ", count, " tensors, but must have 1 to ",
             kMaxLayers);
  AIGC_CHECK(biases.size() == count && alphas.size() == count && gains.size() == count, op, ": ", count,
             " weights, but ", biases.size(), " biases, ", alphas.size(), " alphas and ", gains.size(),
             " gains");
  AIGC_CHECK(x.dim() >= 1, op, ": x has shape [], but must be [..., in_features]");
  std::vector<Layer> layers;
  int64_t features = x.size(x.dim() - 1);
  for (size_t i = 0; i < count; ++i) {
    Layer layer{weights[i], biases[i], {}};
    const std::string w_name = "weights[" + std::to_string(i) + "]",
                      b_name = "biases[" + std::to_string(i) + "]";
    layer.act.dtype = dtype_of(x, op, "x");
    std::string act;
    AIGC_CHECK(std::getline(acts, act, ','), op, ": acts has ", i, " names, but there are ", count,
               " weights");
    set_activation(layer.act, act, alphas[i], gains[i], std::nullopt, op);
    check_same_kind(layer.w, w_name.c_str(), x, "x", op);
    check_same_kind(layer.b, b_name.c_str(), x, "x", op);
    AIGC_CHECK(layer.w.dim() == 2 && layer.w.size(1) == features, op, ": ", w_name, " has shape ",
               shape(layer.w), ", but must be [out_features, ", features, "] behind ",
               i ? "weights[" + std::to_string(i - 1) + "]" : "an x of shape " + shape(x));
    check_vector(layer.b, b_name.c_str(), layer.w.size(0), op);
    features = layer.w.size(0);
    layers.push_back(layer);
  }
  std::string more;
  AIGC_CHECK(!std::getline(acts, more), op, ": acts has more names than there are weights, which are ",
             count);
  return layers;
}

// The views of dy's memory below rely on this.
void check_dy(const Tensor& dy, const Tensor& x, const std::vector<Layer>& layers, const char* op) {
  check_same_kind(dy, "dy", x, "x", op);
  const int64_t features = layers.back().w.size(0), last = x.dim() - 1;
  bool fits = dy.dim() == x.dim() && dy.size(last) == features;
  for (int64_t d = 0; fits && d < last; ++d) fits = dy.size(d) == x.size(d);
  AIGC_CHECK(fits, op, ": dy has shape ", shape(dy), ", but must be that of x, ", shape(x),
             ", with a last dimension of ", features);
}

// `saved` holds for each layer its output (except the last one's) and what the backward of its activation
// needs: the product if it is smooth, the mask (which may be empty) if it is piecewise linear.
struct Saved {
  const TensorList& tensors;
  const Tensor& x;  // rows

  const Tensor& input(size_t i) const { return i == 0 ? x : tensors[2 * (i - 1)]; }
  BiasActInputs activation(size_t i, const Layer& layer) const {
    const Tensor& state = i * 2 + 1 == tensors.size() ? tensors.back() : tensors[2 * i + 1];
    BiasActInputs inputs;
    inputs.b = layer.late_bias();
    (layer.smooth() ? inputs.x : inputs.mask) = state;
    return inputs;
  }
};

void check_saved(const TensorList& saved, const Tensor& x, const std::vector<Layer>& layers, const char* op) {
  AIGC_CHECK(saved.size() == 2 * layers.size() - 1, op, ": saved has ", saved.size(),
             " tensors, but must have ", 2 * layers.size() - 1,
             ", as fused_mlp(..., save=True) returned them");
  const auto check = [&](size_t i, ScalarType dtype, Sizes sizes) {
    const Tensor& t = saved[i];
    const std::string name = "saved[" + std::to_string(i) + "]";
    AIGC_CHECK(t.scalar_type() == dtype && t.sizes() == sizes && t.is_contiguous(), op, ": ", name, " is ",
               dtype_name(t.scalar_type()), " of shape ", shape(t), ", but must be ", dtype_name(dtype),
               " of shape ", shape(sizes), ", as fused_mlp(..., save=True) returned it");
  };
  const int64_t rows = row_count(x);
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const int64_t sizes[] = {rows, layer.w.size(0)};
    const int64_t mask = layer.act.act == Act::linear ? 0 : ceil_div(size_product({sizes[0], sizes[1]}), 8);
    const size_t state = i + 1 < layers.size() ? 2 * i + 1 : 2 * i;
    if (state != 2 * i) check(2 * i, x.scalar_type(), {sizes, 2});
    if (layer.smooth())
      check(state, x.scalar_type(), {sizes, 2});
    else
      check(state, ScalarType::Byte, {&mask, 1});
  }
}

std::tuple<Tensor, TensorList> fused_mlp(const Tensor& x, TensorList weights, TensorList biases,
                                         StringHandle acts, std::vector<double> alphas,
                                         std::vector<double> gains, bool save) {
  using torch::stable::detail::from;
  constexpr const char* op = "fused_mlp";
  const std::vector<Layer> layers = make_layers(x, weights, biases, acts, alphas, gains, op);
  TensorList saved;
  Tensor h = as_rows(x, layers[0].w.size(1));
  for (size_t i = 0; i < layers.size(); ++i) {
    const Layer& layer = layers[i];
    const Tensor product =
        layer.bias_in_product()
            ? call_aten("aten::linear", {from(h), from(layer.w), from(OptionalTensor(layer.b))})
            : mm(h, transposed(layer.w));
    const bool keep_product = save && layer.smooth();
    h = keep_product ? torch::stable::empty_like(product) : product;
    const Tensor mask =
        bias_act_into(h, product, layer.late_bias(), std::nullopt, std::nullopt, -1, layer.act, save, op);
    if (save && i + 1 < layers.size()) saved.push_back(h);
    if (save) saved.push_back(layer.smooth() ? product : mask);
  }
  return {in_shape_of(x, h), saved};
}

// Stands for a gradient that was not asked for. Outputs of an op must not share memory, so each is a new
// tensor.
Tensor nothing(const Tensor& like) { return empty_1d(like, 0, like.scalar_type()); }

bool has(int64_t bits, size_t i) { return bits >> i & 1; }
// Whether anything below layer i is asked for.
bool has_below(int64_t bits, size_t i) { return (bits & ((int64_t(1) << i) - 1)) != 0; }

struct LayerGradients {
  Tensor dz, db;
};

// From the gradient of a layer's output to those of its product and its bias.
LayerGradients through_activation(const Tensor& dh, const Layer& layer, const BiasActInputs& inputs,
                                  bool need_b, const char* op) {
  const bool with_kernel = need_b && !layer.bias_in_product();
  BiasActGradients g = bias_act_gradients(dh, inputs, layer.act, false, with_kernel, false, op);
  if (need_b && !with_kernel) g.db = sum_of_rows(g.dx);
  return {g.dx, g.db};
}

// Bit i of need_w and need_b asks for the gradient of layer i. Gradients that were not asked for are empty.
std::tuple<Tensor, TensorList, TensorList> fused_mlp_backward(const Tensor& dy, const Tensor& x,
                                                              TensorList weights, TensorList biases,
                                                              TensorList saved_tensors, StringHandle acts,
                                                              std::vector<double> alphas,
                                                              std::vector<double> gains, bool need_x,
                                                              int64_t need_w, int64_t need_b) {
  constexpr const char* op = "fused_mlp_backward";
  const std::vector<Layer> layers = make_layers(x, weights, biases, acts, alphas, gains, op);
  check_saved(saved_tensors, x, layers, op);
  check_dy(dy, x, layers, op);
  const Tensor x_rows = as_rows(x, layers[0].w.size(1));
  const Saved saved{saved_tensors, x_rows};
  TensorList dw(layers.size()), db(layers.size());
  Tensor dh = as_rows(dy, layers.back().w.size(0)), dx = nothing(x);
  for (size_t i = layers.size(); i-- > 0;) {
    const Layer& layer = layers[i];
    const LayerGradients g = through_activation(dh, layer, saved.activation(i, layer), has(need_b, i), op);
    db[i] = g.db;
    dw[i] = has(need_w, i) ? mm(transposed(g.dz), saved.input(i)) : nothing(x);
    const bool below = need_x || has_below(need_w | need_b, i);
    if (i > 0 && below) dh = mm(g.dz, layer.w);
    if (i == 0 && need_x) dx = in_shape_of(x, mm(g.dz, layer.w));
    if (!below) {
      for (size_t j = 0; j < i; ++j) dw[j] = nothing(x), db[j] = nothing(x);
      break;
    }
  }
  return {dx, dw, db};
}

std::tuple<Tensor, Tensor, TensorList, TensorList> fused_mlp_double_backward(
    const Tensor& u, const Tensor& dy, const Tensor& x, TensorList weights, TensorList biases,
    TensorList saved_tensors, StringHandle acts, std::vector<double> alphas, std::vector<double> gains,
    bool need_x, int64_t need_w, int64_t need_b) {
  constexpr const char* op = "fused_mlp_double_backward";
  const std::vector<Layer> layers = make_layers(x, weights, biases, acts, alphas, gains, op);
  check_saved(saved_tensors, x, layers, op);
  check_dy(dy, x, layers, op);
  check_same_kind(u, "u", x, "x", op);
  check_same_shape(u, "u", x, "x", op);
  const size_t count = layers.size();
  const Tensor x_rows = as_rows(x, layers[0].w.size(1));
  const Saved saved{saved_tensors, x_rows};

  // The backward once more, for dh_i (the gradient of the output) and dz_i (that of the product).
  TensorList dh(count), dz(count);
  dh[count - 1] = as_rows(dy, layers.back().w.size(0));
  for (size_t i = count; i-- > 0;) {
    dz[i] = through_activation(dh[i], layers[i], saved.activation(i, layers[i]), false, op).dz;
    if (i > 0) dh[i - 1] = mm(dz[i], layers[i].w);
  }

  TensorList grad_w(count), grad_b(count);
  std::vector<OptionalTensor> t(count);
  Tensor v = as_rows(u, layers[0].w.size(1));
  for (size_t i = 0; i < count; ++i) {
    const Layer& layer = layers[i];
    grad_w[i] = has(need_w, i) ? mm(transposed(dz[i]), v) : nothing(x);
    grad_b[i] = nothing(x);
    const Tensor c = mm(v, transposed(layer.w));
    const BiasActInputs inputs = saved.activation(i, layer);
    if (layer.smooth()) {
      const auto g = bias_act_second_gradients(c, dh[i], inputs, layer.act, false, false, false, op);
      v = g.grad_dy;
      t[i] = g.grad_x;
    } else {
      v = through_activation(c, layer, inputs, false, op).dz;
    }
  }
  const Tensor grad_dy = in_shape_of(dy, v);

  Tensor grad_x = nothing(x);
  OptionalTensor from_above;  // t_{i+1} W_{i+1}
  for (size_t i = count; i-- > 0;) {
    const Layer& layer = layers[i];
    if (from_above) {
      const Tensor more = through_activation(*from_above, layer, saved.activation(i, layer), false, op).dz;
      t[i] = t[i] ? sum(*t[i], more) : more;
    }
    if (t[i]) {
      if (has(need_w, i)) grad_w[i] = sum(grad_w[i], mm(transposed(*t[i]), saved.input(i)));
      if (has(need_b, i)) grad_b[i] = sum_of_rows(*t[i]);
      if (i > 0 && (need_x || has_below(need_w | need_b, i))) from_above = mm(*t[i], layer.w);
      if (i == 0 && need_x) grad_x = in_shape_of(x, mm(*t[i], layer.w));
    } else if (has(need_b, i)) {
      grad_b[i] = empty_1d(x, layer.b.size(0), x.scalar_type());
      torch::stable::zero_(grad_b[i]);
    }
  }
  if (need_x && !t[0]) {
    grad_x = torch::stable::empty_like(as_format(x, false));
    torch::stable::zero_(grad_x);
  }
  return {grad_dy, grad_x, grad_w, grad_b};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "fused_mlp(Tensor x, Tensor[] weights, Tensor[] biases, "
      "str acts, float[] alphas, float[] gains, bool save) "
      "-> (Tensor y, Tensor[] saved)");
  m.def(
      "fused_mlp_backward(Tensor dy, Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] saved, "
      "str acts, float[] alphas, float[] gains, bool need_x, int need_w, int need_b) "
      "-> (Tensor dx, Tensor[] dw, Tensor[] db)");
  m.def(
      "fused_mlp_double_backward(Tensor u, Tensor dy, Tensor x, Tensor[] weights, Tensor[] biases, "
      "Tensor[] saved, str acts, float[] alphas, float[] gains, bool need_x, int need_w, int need_b) "
      "-> (Tensor grad_dy, Tensor grad_x, Tensor[] grad_w, Tensor[] grad_b)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "fused_mlp", fused_mlp);
  AIGC_BIND(m, "fused_mlp_backward", fused_mlp_backward);
  AIGC_BIND(m, "fused_mlp_double_backward", fused_mlp_double_backward);
}

}  // namespace aigc
