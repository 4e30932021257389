// Images [N, C, H, W] of floats as bytes [N, H, W, C]:
//
//     round((x - low) * scale), to nearest even, limited to 0 ... 255; NaN becomes 0
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct ImageBytesParams {
  double low = 0, scale = 1;
  int64_t channels = 0, height = 0, width = 0;
  const float* x = nullptr;
  uint8_t* y = nullptr;
};

}  // namespace aigc

AIGC_KERNEL(image_bytes, ImageBytesParams)  // items: rows of pixels, N * H
