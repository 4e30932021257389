#include "gated_act/gated_act.h"

#include "glue/backend.h"

namespace aigc {
namespace {

// Elements of y in an item. CPU: with tanh and sigmoid, enough work for a thread. GPU: there must be several
// items for each of a hundred or more multiprocessors.
constexpr int64_t kChunkElements = kOnGpu ? 2048 : 8192;
// So many items are enough for a GPU; beyond that, larger items make for fewer partial sums.
constexpr int64_t kManyItems = 4096;

// x is dense.
GatedActParams make_params(const Tensor& x, const OptionalTensor& b, const char* op) {
  GatedActParams p;
  p.dtype = dtype_of(x, op, "x");
  AIGC_CHECK(x.dim() >= 2 && x.size(1) % 2 == 0, op, ": x has shape ", shape(x),
             ", but must be [N, C, ...] with an even number of channels C");
  if (b) {
    check_same_kind(*b, "b", x, "x", op);
    check_channels(*b, "b", x, op);
  }
  const ChannelLayout layout = channel_layout(x, 1);
  p.outer = layout.outer;
  p.channels = layout.channels / 2;
  p.inner = layout.inner;
  const int64_t units = kChunkElements / max(unit_length(p), 1);
  // Where the bias runs along a unit, a chunk writes a whole row of partial sums: it needs enough pixels for
  // that to pay.
  p.units_per_chunk = max(units, bias_runs_along(p) ? 16 : 1);
  if (kOnGpu && bias_runs_along(p)) p.units_per_chunk = max(p.units_per_chunk, p.outer / kManyItems);
  p.x = x.data_ptr();
  p.b = data_or_null(b);
  return p;
}

int64_t items(const GatedActParams& p) { return p.channels * p.inner == 0 ? 0 : chunk_count(p); }

// A tensor like x with half the channels.
Tensor empty_half(const Tensor& x) {
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end());
  sizes[1] /= 2;
  return empty_dense(x, sizes, is_channels_last(x));
}

Tensor gated_act(const Tensor& x_any, OptionalTensor b) {
  const Tensor x = as_dense(x_any);
  const OptionalTensor bias = contiguous(b);
  GatedActParams p = make_params(x, bias, "gated_act");
  const Tensor y = empty_half(x);
  p.y = y.data_ptr();
  AIGC_RUN(gated_act_forward, p, items(p), 1, x);
  return y;
}

std::tuple<Tensor, Tensor> gated_act_backward(const Tensor& dy_any, const Tensor& x_any, OptionalTensor b,
                                              bool need_b) {
  constexpr const char* op = "gated_act_backward";
  const Tensor x = as_dense(x_any);
  const OptionalTensor bias = contiguous(b);
  GatedActParams p = make_params(x, bias, op);
  AIGC_CHECK(!need_b || b, op, ": the gradient of b is asked for, but b is not given");
  check_same_kind(dy_any, "dy", x, "x", op);
  bool fits = dy_any.dim() == x.dim();
  for (int64_t d = 0; fits && d < x.dim(); ++d) fits = dy_any.size(d) == (d == 1 ? p.channels : x.size(d));
  AIGC_CHECK(fits, op, ": dy has shape ", shape(dy_any), ", but must be that of x, ", shape(x),
             ", with half the channels");
  const Tensor dy = as_format(dy_any, is_channels_last(x));
  const Tensor dx = torch::stable::empty_like(x);
  Tensor db = empty_1d(x, need_b ? x.size(1) : 0, x.scalar_type());
  p.dy = dy.data_ptr();
  p.dx = dx.data_ptr();
  if (!need_b || items(p) == 0) {
    AIGC_RUN(gated_act_backward, p, items(p), 1, x);
    torch::stable::zero_(db);
    return {dx, db};
  }
  const Tensor partials = empty_1d(x, partial_rows(p) * 2 * p.channels, ScalarType::Double);
  p.partials = static_cast<double*>(partials.data_ptr());
  p.db = db.data_ptr();
  AIGC_RUN(gated_act_backward, p, items(p), 1, x);
  AIGC_RUN(gated_act_reduce, p, 2 * p.channels, 64, x);
  return {dx, db};
}

}  // namespace

AIGC_OPS(m) {
  m.def("gated_act(Tensor x, Tensor? b) -> Tensor");
  m.def("gated_act_backward(Tensor dy, Tensor x, Tensor? b, bool need_b) -> (Tensor dx, Tensor db)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "gated_act", gated_act);
  AIGC_BIND(m, "gated_act_backward", gated_act_backward);
}

}  // namespace aigc
