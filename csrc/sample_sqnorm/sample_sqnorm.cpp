#include "sample_sqnorm/sample_sqnorm.h"

#include <algorithm>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kChunkElements = kOnGpu ? 8192 : 32768;  // of an item

SampleParams make_params(const Tensor& a, const char* name, const char* op) {
  SampleParams p;
  p.dtype = dtype_of(a, op, name);
  AIGC_CHECK(a.dim() >= 1, op, ": ", name, " has no dimensions, but must have shape [N, ...]");
  p.samples = a.size(0);
  p.length = p.samples > 0 ? a.numel() / p.samples : 0;
  p.chunk = std::clamp<int64_t>(p.length, 1, kChunkElements);
  return p;
}

int64_t grain(const SampleParams& p) { return grain_of(kChunkElements, p.chunk); }

// a and b are dense, in the same layout.
Tensor dot(const Tensor& a, const Tensor& b, SampleParams p) {
  const Tensor result = empty_1d(a, p.samples, acc_type(a));
  if (p.length == 0) {
    Tensor zeros = result;
    return torch::stable::zero_(zeros);
  }
  p.a = a.data_ptr();
  p.b = b.data_ptr();
  p.dot = result.data_ptr();
  const int64_t chunks = p.samples * chunks_per_sample(p);
  if (chunks == p.samples) {
    AIGC_RUN(sample_dot_chunks, p, chunks, grain(p), a);
    return result;
  }
  const Tensor partials = empty_1d(a, chunks, ScalarType::Double);
  p.partials = static_cast<double*>(partials.data_ptr());
  AIGC_RUN(sample_dot_chunks, p, chunks, grain(p), a);
  AIGC_RUN(sample_dot_reduce, p, p.samples, 1024, a);
  return result;
}

Tensor sample_sqnorm(const Tensor& g_any) {
  const SampleParams p = make_params(g_any, "g", "sample_sqnorm");
  const Tensor g = as_dense(g_any);
  return dot(g, g, p);
}

Tensor sample_dot(const Tensor& a_any, const Tensor& b_any) {
  constexpr const char* op = "sample_dot";
  const SampleParams p = make_params(a_any, "a", op);
  check_same_kind(b_any, "b", a_any, "a", op);
  check_same_shape(b_any, "b", a_any, "a", op);
  const Tensor a = as_dense(a_any);
  return dot(a, as_format(b_any, is_channels_last(a)), p);
}

Tensor sample_scale(const Tensor& a_any, const Tensor& s_any) {
  constexpr const char* op = "sample_scale";
  SampleParams p = make_params(a_any, "a", op);
  AIGC_CHECK(s_any.dim() == 1 && s_any.size(0) == p.samples && s_any.scalar_type() == acc_type(a_any), op,
             ": s is ", dtype_name(s_any.scalar_type()), " of shape ", shape(s_any), ", but must be ",
             dtype_name(acc_type(a_any)), " of shape [", p.samples, "]");
  const Tensor a = as_dense(a_any), s = as_format(s_any, false);
  const Tensor y = torch::stable::empty_like(a);
  if (a.numel() == 0) return y;
  p.a = a.data_ptr();
  p.s = s.data_ptr();
  p.y = y.data_ptr();
  AIGC_RUN(sample_scale_chunks, p, p.samples * chunks_per_sample(p), grain(p), a);
  return y;
}

}  // namespace

AIGC_OPS(m) {
  m.def("sample_sqnorm(Tensor g) -> Tensor");
  m.def("sample_dot(Tensor a, Tensor b) -> Tensor");
  m.def("sample_scale(Tensor a, Tensor s) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "sample_sqnorm", sample_sqnorm);
  AIGC_BIND(m, "sample_dot", sample_dot);
  AIGC_BIND(m, "sample_scale", sample_scale);
}

}  // namespace aigc
