#include "vector_quantize/vector_quantize.h"

#include <tuple>

#include "glue/backend.h"

namespace aigc {
namespace {

constexpr int64_t kWork = 1 << 18;      // multiplications that are enough work for a thread
constexpr int64_t kElements = 1 << 15;  // and moved elements

// Rows are numbered in the order of their indices, which are contiguous: so must x be, or channels-last with the
// channels as the rows' numbers. Any other layout is copied.
Tensor in_order_of_rows(const Tensor& x, int64_t dim) {
  return dim == 1 && is_channels_last(x) ? x : as_format(x, false);
}

std::vector<int64_t> without_dim(const Tensor& x, int64_t dim) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < x.dim(); ++d)
    if (d != dim) sizes.push_back(x.size(d));
  return sizes;
}

void set_layout(VectorQuantizeParams& p, const Tensor& dense, int64_t dim) {
  const ChannelLayout layout = channel_layout(dense, dim);
  p.outer = layout.outer;
  p.depth = layout.channels;
  p.inner = layout.inner;
}

Tensor new_indices(const Tensor& x, const std::vector<int64_t>& sizes) {
  return empty_strided(x, sizes, dense_strides(sizes, false), ScalarType::Long);
}

// `indices` must be int64.
Tensor contiguous_indices(const Tensor& indices, const char* op) {
  AIGC_CHECK(indices.scalar_type() == ScalarType::Long, op, ": indices is ",
             dtype_name(indices.scalar_type()), ", but must be int64");
  return as_format(indices, false);
}

void check_codes(const Tensor& codebook, const char* op) {
  AIGC_CHECK(codebook.dim() == 2 && codebook.size(0) > 0, op, ": codebook has shape ", shape(codebook),
             ", but must be [codes, numbers], with one code at least");
}

int64_t copy_grain(const VectorQuantizeParams& p) { return grain_of(kElements, kRowBlock * p.depth); }

std::tuple<Tensor, Tensor> vector_quantize(const Tensor& x_any, const Tensor& codebook, int64_t dim) {
  constexpr const char* op = "vector_quantize";
  VectorQuantizeParams p;
  p.dtype = dtype_of(x_any, op, "x");
  dim = wrap_dim(dim, x_any, op);
  check_same_kind(codebook, "codebook", x_any, "x", op);
  check_codes(codebook, op);
  AIGC_CHECK(codebook.size(1) == x_any.size(dim), op, ": codebook has shape ", shape(codebook),
             ", but must be [codes, ", x_any.size(dim), "] for an x of shape ", shape(x_any), " and dim ",
             dim);
  const Tensor x = in_order_of_rows(x_any, dim), codes = as_format(codebook, false);
  set_layout(p, x, dim);
  p.num_codes = codes.size(0);
  const Tensor y = torch::stable::empty_like(x);
  const Tensor indices = new_indices(x, without_dim(x, dim));
  if (rows_of(p) == 0) return {y, indices};
  const int64_t width = size_product({code_groups(p), kGroup});
  const Tensor norms = empty_1d(x, width, acc_type(p.dtype));
  const Tensor panel = empty_1d(x, size_product({width, p.depth}), acc_type(p.dtype));
  p.x = x.data_ptr();
  p.codes = codes.data_ptr();
  p.nearest = static_cast<int64_t*>(indices.data_ptr());
  p.y = y.data_ptr();
  p.panel = panel.data_ptr();
  p.negative_half_norms = norms.data_ptr();
  AIGC_RUN(vector_quantize_prepare, p, code_groups(p), grain_of(kElements, kGroup * (p.depth + 1)), x);
  AIGC_RUN(vector_quantize, p, row_blocks(p), grain_of(kWork, kRowBlock * width * (p.depth + 1)), x);
  return {y, indices};
}

Tensor code_rows(const Tensor& codebook, const Tensor& indices_any, int64_t dim, bool channels_last) {
  constexpr const char* op = "code_rows";
  VectorQuantizeParams p;
  p.dtype = dtype_of(codebook, op, "codebook");
  check_codes(codebook, op);
  const Tensor codes = as_format(codebook, false), indices = contiguous_indices(indices_any, op);
  AIGC_CHECK(dim >= 0 && dim <= indices.dim(), op, ": dim is ", dim, ", but must be from 0 to ",
             indices.dim(), " for indices of shape ", shape(indices));
  AIGC_CHECK(!channels_last || (dim == 1 && indices.dim() >= 2), op, ": channels_last is true, but dim is ",
             dim, " and indices has shape ", shape(indices));
  std::vector<int64_t> sizes(indices.sizes().begin(), indices.sizes().end());
  sizes.insert(sizes.begin() + dim, codes.size(1));
  const Tensor y = empty_dense(codes, sizes, channels_last);
  p.outer = p.inner = 1;
  for (int64_t d = 0; d < indices.dim(); ++d)
    (d < dim || channels_last ? p.outer : p.inner) *= indices.size(d);
  p.depth = codes.size(1);
  p.num_codes = codes.size(0);
  if (y.numel() == 0) return y;
  p.codes = codes.data_ptr();
  p.indices = static_cast<const int64_t*>(indices.data_ptr());
  p.y = y.data_ptr();
  AIGC_RUN(code_rows, p, row_blocks(p), copy_grain(p), y);
  return y;
}

Tensor code_sums(const Tensor& x_any, const Tensor& indices_any, int64_t num_codes, int64_t dim) {
  constexpr const char* op = "code_sums";
  VectorQuantizeParams p;
  p.dtype = dtype_of(x_any, op, "x");
  dim = wrap_dim(dim, x_any, op);
  AIGC_CHECK(num_codes > 0, op, ": num_codes is ", num_codes, ", but must be at least 1");
  const Tensor x = in_order_of_rows(x_any, dim), indices = contiguous_indices(indices_any, op);
  const std::vector<int64_t> expected = without_dim(x, dim);
  AIGC_CHECK(indices.sizes() == Sizes(expected), op, ": indices has shape ", shape(indices), ", but must be ",
             shape(Sizes(expected)), " for an x of shape ", shape(x), " and dim ", dim);
  set_layout(p, x, dim);
  p.num_codes = num_codes;
  const int64_t sizes[] = {num_codes, p.depth};
  const Tensor sums = empty_dense(x, {sizes, 2}, false);
  if (sums.numel() == 0) return sums;
  p.x = x.data_ptr();
  p.indices = static_cast<const int64_t*>(indices.data_ptr());
  p.sums = sums.data_ptr();
  const Tensor partial =
      empty_1d(x, kOnGpu ? size_product({part_count(p), num_codes, p.depth}) : 0, ScalarType::Double);
  p.partial = static_cast<double*>(partial.data_ptr());
  const int64_t width = p.inner == 1 ? kColumnBlock : 1;
  AIGC_RUN(code_sums, p, column_blocks(p), grain_of(kElements, (rows_of(p) + num_codes) * width), x);
  return sums;
}

}  // namespace

AIGC_OPS(m) {
  m.def("vector_quantize(Tensor x, Tensor codebook, int dim) -> (Tensor codes, Tensor indices)");
  m.def("code_rows(Tensor codebook, Tensor indices, int dim, bool channels_last) -> Tensor");
  m.def("code_sums(Tensor x, Tensor indices, int num_codes, int dim) -> Tensor");
}

AIGC_IMPL(m) {
  AIGC_BIND(m, "vector_quantize", vector_quantize);
  AIGC_BIND(m, "code_rows", code_rows);
  AIGC_BIND(m, "code_sums", code_sums);
}

}  // namespace aigc
