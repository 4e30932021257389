#include "negated/negated.h"

#include "glue/backend.h"

namespace aigc {
namespace {

Tensor negated(const Tensor& x_any) {
  const Tensor x = as_dense(x_any), y = torch::stable::empty_like(x);
  NegatedParams p;
  p.dtype = dtype_of(x, "negated", "x");
  p.x = x.data_ptr();
  p.y = y.data_ptr();
  AIGC_RUN(negated_elements, p, x.numel(), 4096, x);
  return y;
}

}  // namespace

AIGC_OPS(m) { m.def("negated(Tensor x) -> Tensor"); }

AIGC_IMPL(m) { AIGC_BIND(m, "negated", negated); }

}  // namespace aigc
