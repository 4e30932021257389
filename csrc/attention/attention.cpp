#include "attention/attention.h"

#include <array>
#include <cmath>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kWork = 1 << 18;  // multiplications that are enough work for a thread
// A gradient in keys is a sum over the queries. Few heads are cut into parts, for as many threads, of at least
// so many queries: a part adds a pass over its share.
constexpr int64_t kItems = 8, kPartQueries = 256;

// ---- memory formats: [N, H, L, D], [N, L, H, D] (heads inside) or [N, H, D, L] (as in images) --------------

using Order = std::array<int64_t, 4>;
constexpr Order kContiguous = {0, 1, 2, 3};
constexpr std::array<Order, 3> kOrders = {kContiguous, {0, 2, 1, 3}, {0, 1, 3, 2}};

std::vector<int64_t> strides_in(Sizes sizes, const Order& order) {
  std::vector<int64_t> strides(4);
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    strides[order[i]] = stride;
    stride = size_product({stride, max(sizes[order[i]], 1)});
  }
  return strides;
}

Order order_of(const Tensor& t) {
  for (const Order& order : kOrders)
    if (has_strides(t, strides_in(t.sizes(), order))) return order;
  return kContiguous;
}

// With the dtype and the memory format of `like`, which is contiguous if it is none of these.
Tensor empty_in_format(const Tensor& like, int64_t rows, int64_t columns) {
  const int64_t sizes[] = {like.size(0), like.size(1), rows, columns};
  size_product({sizes, 4});
  const std::vector<int64_t> strides = strides_in({sizes, 4}, order_of(like));
  return empty_strided(like, {sizes, 4}, strides, like.scalar_type());
}

template <class Pointer>
AttentionTensor<Pointer> describe(const Tensor& t) {
  // Dimensions of size 1 have any stride.
  const bool row = t.size(2) <= 1 && t.stride(3) != 1, column = t.size(3) <= 1;
  return {t.data_ptr(), t.stride(0), t.stride(1), row ? 1 : t.stride(2), column ? 1 : t.stride(3)};
}

// ---- arguments --------------------------------------------------------------------------------------------

void set_params(AttentionParams& p, const Tensor& q, const Tensor& k, const Tensor& v, OptionalTensor& mask,
                double scale, bool causal, bool distance, const char* op) {
  p.dtype = dtype_of(q, op, "q");
  AIGC_CHECK(q.dim() == 4, op, ": q has shape ", shape(q), ", but must be [N, heads, queries, width]");
  check_same_kind(k, "k", q, "q", op);
  check_same_kind(v, "v", q, "q", op);
  AIGC_CHECK(k.dim() == 4 && k.size(0) == q.size(0) && k.size(1) == q.size(1) && k.size(3) == q.size(3), op,
             ": k has shape ", shape(k), ", but must be [", q.size(0), ", ", q.size(1), ", keys, ", q.size(3),
             "] for a q of shape ", shape(q));
  AIGC_CHECK(v.dim() == 4 && v.size(0) == k.size(0) && v.size(1) == k.size(1) && v.size(2) == k.size(2), op,
             ": v has shape ", shape(v), ", but must be [", k.size(0), ", ", k.size(1), ", ", k.size(2),
             ", value_width] for a k of shape ", shape(k));
  AIGC_CHECK(std::isfinite(scale), op, ": scale is ", scale, ", but must be finite");
  if (mask) {
    AIGC_CHECK(mask->scalar_type() == ScalarType::Bool, op, ": key_padding_mask is ",
               dtype_name(mask->scalar_type()), ", but must be bool");
    AIGC_CHECK(mask->dim() == 2 && mask->size(0) == k.size(0) && mask->size(1) == k.size(2), op,
               ": key_padding_mask has shape ", shape(*mask), ", but must be [", k.size(0), ", ", k.size(2),
               "] for a k of shape ", shape(k));
    mask = as_format(*mask, false);
    p.padding = static_cast<const uint8_t*>(mask->data_ptr());
  }
  p.causal = causal;
  p.scale = distance ? 2 * scale : scale;
  p.key_scale = distance ? -scale : 0;
  p.batch = q.size(0);
  p.heads = q.size(1);
  p.queries = q.size(2);
  p.keys = k.size(2);
  p.width = q.size(3);
  p.value_width = v.size(3);
  p.q = describe<const void*>(q);
  p.k = describe<const void*>(k);
  p.v = describe<const void*>(v);
}

int64_t heads_of(const AttentionParams& p) { return size_product({p.batch, p.heads}); }

// Of some products over all pairs of a query and a key.
int64_t grain(const AttentionParams& p, int64_t products, int64_t queries) {
  const int64_t work = max(queries, 1) * max(p.keys, 1);
  return grain_of(kWork, products * max(p.width, p.value_width) * work);
}

// Results of grad_k's and grad_v's shapes, and where their shares are if there are several parts.
OptionalTensor set_parts(AttentionBackwardParams& p, const Tensor& q) {
  const int64_t heads = heads_of(p);
  p.parts = max(1, min(ceil_div(kItems, max(heads, 1)), p.queries / kPartQueries));
  if (p.parts == 1) return std::nullopt;
  const int64_t count = size_product({heads, p.parts, p.keys, size_sum({p.width, p.value_width})});
  Tensor shares = empty_1d(q, count, acc_type(p.dtype));
  p.shares = shares.data_ptr();
  return shares;
}

void join_parts(const AttentionBackwardParams& p, [[maybe_unused]] const Tensor& q) {
  if (p.parts > 1) AIGC_RUN(attention_join, p, heads_of(p), grain(p, 1, p.parts), q);
}

void set_backward(AttentionBackwardParams& p, const Tensor& grad_o, const Tensor& q, const Tensor& v,
                  const Tensor& lse, const char* op) {
  check_same_kind(grad_o, "grad_o", q, "q", op);
  AIGC_CHECK(grad_o.dim() == 4 && grad_o.size(0) == q.size(0) && grad_o.size(1) == q.size(1) &&
                 grad_o.size(2) == q.size(2) && grad_o.size(3) == v.size(3),
             op, ": grad_o has shape ", shape(grad_o), ", but must be [", q.size(0), ", ", q.size(1), ", ",
             q.size(2), ", ", v.size(3), "]");
  AIGC_CHECK(lse.scalar_type() == acc_type(p.dtype) && lse.dim() == 3 && lse.size(0) == q.size(0) &&
                 lse.size(1) == q.size(1) && lse.size(2) == q.size(2),
             op, ": lse is ", dtype_name(lse.scalar_type()), " of shape ", shape(lse), ", but must be ",
             dtype_name(acc_type(p.dtype)), " of shape [", q.size(0), ", ", q.size(1), ", ", q.size(2), "]");
  p.lse = lse.data_ptr();
  p.grad_o = describe<const void*>(grad_o);
}

// ---- ops --------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, OptionalTensor mask,
                                     double scale, bool causal, bool distance) {
  AttentionParams p;
  set_params(p, q, k, v, mask, scale, causal, distance, "attention");
  const Tensor o = empty_in_format(q, p.queries, p.value_width);
  const int64_t sizes[] = {p.batch, p.heads, p.queries};
  const Tensor lse = empty_strided(q, {sizes, 3}, dense_strides({sizes, 3}, false), acc_type(p.dtype));
  p.o = describe<void*>(o);
  p.lse = lse.data_ptr();
  const int64_t blocks = ceil_div(p.queries, AttentionParams::kRows);
  AIGC_RUN(attention_forward, p, size_product({heads_of(p), blocks}), grain(p, 2, AttentionParams::kRows), q);
  return {o, lse};
}

std::tuple<Tensor, Tensor, Tensor> attention_backward(const Tensor& grad_o, const Tensor& q, const Tensor& k,
                                                      const Tensor& v, const Tensor& lse_any,
                                                      OptionalTensor mask, double scale, bool causal,
                                                      bool distance) {
  constexpr const char* op = "attention_backward";
  AttentionBackwardParams p;
  set_params(p, q, k, v, mask, scale, causal, distance, op);
  const Tensor lse = as_format(lse_any, false);
  set_backward(p, grad_o, q, v, lse, op);
  const Tensor grad_q = empty_in_format(q, p.queries, p.width), grad_k = empty_in_format(k, p.keys, p.width),
               grad_v = empty_in_format(v, p.keys, p.value_width);
  p.grad_q = describe<void*>(grad_q);
  p.grad_k = describe<void*>(grad_k);
  p.grad_v = describe<void*>(grad_v);
  const OptionalTensor shares = set_parts(p, q);
  AIGC_RUN(attention_backward, p, heads_of(p) * p.parts, grain(p, 5, p.queries / p.parts), q);
  join_parts(p, q);
  return {grad_q, grad_k, grad_v};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_double_backward(
    OptionalTensor grad_grad_q, OptionalTensor grad_grad_k, OptionalTensor grad_grad_v, const Tensor& grad_o,
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& lse_any, OptionalTensor mask,
    double scale, bool causal, bool distance) {
  constexpr const char* op = "attention_double_backward";
  AttentionDoubleBackwardParams p;
  set_params(p, q, k, v, mask, scale, causal, distance, op);
  const Tensor lse = as_format(lse_any, false);
  set_backward(p, grad_o, q, v, lse, op);
  const auto describe_like = [&](const OptionalTensor& t, const char* name, const Tensor& like,
                                 const char* like_name) {
    if (!t) return AttentionInput();
    check_same_kind(*t, name, q, "q", op);
    check_same_shape(*t, name, like, like_name, op);
    return describe<const void*>(*t);
  };
  p.a = describe_like(grad_grad_q, "grad_grad_q", q, "q");
  p.b = describe_like(grad_grad_k, "grad_grad_k", k, "k");
  p.c = describe_like(grad_grad_v, "grad_grad_v", v, "v");
  const Tensor grad_grad_o = empty_in_format(grad_o, p.queries, p.value_width),
               grad_q = empty_in_format(q, p.queries, p.width), grad_k = empty_in_format(k, p.keys, p.width),
               grad_v = empty_in_format(v, p.keys, p.value_width);
  p.grad_grad_o = describe<void*>(grad_grad_o);
  p.grad_q = describe<void*>(grad_q);
  p.grad_k = describe<void*>(grad_k);
  p.grad_v = describe<void*>(grad_v);
  const OptionalTensor shares = set_parts(p, q);
  AIGC_RUN(attention_double_backward, p, heads_of(p) * p.parts, grain(p, 12, p.queries / p.parts), q);
  join_parts(p, q);
  return {grad_grad_o, grad_q, grad_k, grad_v};
}

}  // namespace

AIGC_OPS(m) {
  m.def(
      "attention(Tensor q, Tensor k, Tensor v, Tensor? key_padding_mask, float scale, bool causal, "
      "bool distance) -> (Tensor o, Tensor lse)");
  m.def(
      "attention_backward(Tensor grad_o, Tensor q, Tensor k, Tensor v, Tensor lse, Tensor? key_padding_mask, "
      "float scale, bool causal, bool distance) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");
  m.def(
      "attention_double_backward(Tensor? grad_grad_q, Tensor? grad_grad_k, Tensor? grad_grad_v, "
      "Tensor grad_o, Tensor q, Tensor k, Tensor v, Tensor lse, Tensor? key_padding_mask, float scale, "
      "bool causal, bool distance) -> (Tensor grad_grad_o, Tensor grad_q, Tensor grad_k, Tensor grad_v)");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "attention", attention);
  AIGC_BIND(m, "attention_backward", attention_backward);
  AIGC_BIND(m, "attention_double_backward", attention_double_backward);
}

}  // namespace aigc
