#include "linear_rows/linear_rows.h"

#include <sstream>

#include "bias_act/bias_act_glue.h"
#include "glue/backend.h"

namespace aigc {
namespace {

constexpr const char* kOp = "linear_rows";
constexpr int64_t kWork = 1 << 18;  // multiplications that are enough work for a thread

Tensor linear_rows(const Tensor& x, TensorList weights, TensorList biases, StringHandle acts_handle,
                   std::vector<double> alphas, std::vector<double> gains) {
  std::istringstream acts(take_string(acts_handle));
  const size_t count = weights.size();
  AIGC_CHECK(count >= 1 && biases.size() == count && alphas.size() == count && gains.size() == count, kOp,
             ": there are ", count, " weights, ", biases.size(), " biases, ", alphas.size(), " alphas and ",
             gains.size(), " gains, but there must be one of each for every layer");
  const DType dtype = dtype_of(x, kOp, "x");
  AIGC_CHECK(dtype == DType::float32 || dtype == DType::float64, kOp,
             ": x must be of dtype float32 or float64");
  AIGC_CHECK(x.dim() == 2, kOp, ": x has shape ", shape(x), ", but must be [rows, in_features]");
  Tensor h = as_format(x, false);
  for (size_t i = 0; i < count; ++i) {
    const std::string w_name = "weights[" + std::to_string(i) + "]",
                      b_name = "biases[" + std::to_string(i) + "]";
    check_same_kind(weights[i], w_name.c_str(), x, "x", kOp);
    check_same_kind(biases[i], b_name.c_str(), x, "x", kOp);
    AIGC_CHECK(weights[i].dim() == 2 && weights[i].size(1) == h.size(1), kOp, ": ", w_name, " has shape ",
               shape(weights[i]), ", but must be [out_features, ", h.size(1), "]");
    check_vector(biases[i], b_name.c_str(), weights[i].size(0), kOp);
    std::string act;
    AIGC_CHECK(std::getline(acts, act, ','), kOp, ": acts has ", i, " names, but there are ", count,
               " weights");
    BiasActParams activation;
    set_activation(activation, act, alphas[i], gains[i], std::nullopt, kOp);
    const Tensor w = as_format(weights[i], false), b = as_format(biases[i], false);
    const int64_t sizes[] = {h.size(0), w.size(0)}, strides[] = {max(w.size(0), 1), 1};
    const Tensor y = empty_strided(x, {sizes, 2}, {strides, 2}, x.scalar_type());
    LinearRowsParams p;
    p.dtype = dtype;
    p.act = activation.act;
    p.alpha = activation.alpha;
    p.gain = activation.gain;
    p.rows = sizes[0];
    p.in_features = w.size(1);
    p.out_features = sizes[1];
    p.x = h.data_ptr();
    p.w = w.data_ptr();
    p.b = b.data_ptr();
    p.y = y.data_ptr();
    constexpr int64_t columns = LinearRowsParams::kColumns;
    if (y.numel() > 0)
      AIGC_RUN(linear_rows, p, ceil_div(p.out_features, columns),
               grain_of(kWork, p.rows * p.in_features * columns), y);
    h = y;
  }
  return h;
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "linear_rows(Tensor x, Tensor[] weights, Tensor[] biases, str acts, float[] alphas, float[] gains) -> "
      "Tensor");
}

AIGC_IMPL(m) { AIGC_BIND(m, "linear_rows", linear_rows); }

}  // namespace aigc
