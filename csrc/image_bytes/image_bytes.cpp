#include "image_bytes/image_bytes.h"

#include "glue/backend.h"
#include "glue/tensor.h"

namespace aigc {
namespace {

constexpr const char* kOp = "image_bytes";
constexpr int64_t kPixels = 1 << 16;  // that are enough work for a thread

Tensor image_bytes(const Tensor& x, double low, double scale) {
  AIGC_CHECK(dtype_of(x, kOp, "x") == DType::float32, kOp, ": x must be of dtype float32");
  AIGC_CHECK(x.dim() == 4, kOp, ": x has shape ", shape(x), ", but must be [N, C, H, W]");
  const Tensor dense = as_format(x, false);
  const int64_t channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t sizes[] = {x.size(0), height, width, channels};
  const int64_t row = size_product({width, channels});
  const int64_t strides[] = {size_product({height, row}), row, channels, 1};
  const Tensor y = empty_strided(x, {sizes, 4}, {strides, 4}, ScalarType::Byte);
  ImageBytesParams p;
  p.low = low;
  p.scale = scale;
  p.channels = channels;
  p.height = height;
  p.width = width;
  p.x = static_cast<const float*>(dense.data_ptr());
  p.y = static_cast<uint8_t*>(y.data_ptr());
  if (y.numel() > 0) AIGC_RUN(image_bytes, p, x.size(0) * height, grain_of(kPixels, width * channels), y);
  return y;
}

}  // namespace

AIGC_OPS(m) { m.def("image_bytes(Tensor x, float low, float scale) -> Tensor"); }

AIGC_IMPL(m) { AIGC_BIND(m, "image_bytes", image_bytes); }

}  // namespace aigc
