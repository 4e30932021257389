// Convolution of images with 3x3 filters, stride 1, by Winograd's minimal filtering F(2x2, 3x3) (Lavin and
// Gray 2016, "Fast Algorithms for Convolutional Neural Networks"): a tile of 2x2 outputs costs 16 products
// per pair of channels instead of 36. It is for the CPU only; on a GPU cuDNN does the same.
//
//     y[o] = A^T (sum over i of (G w[o,i] G^T) * (B^T x[i] B)) A + b[o]   for every tile of 4x4 inputs x
//
//           [1  0 -1  0]         [ 1    0    0 ]
//     B^T = [0  1  1  0]     G = [1/2  1/2  1/2]     A^T = [1  1  1  0]
//           [0 -1  1  0]         [1/2 -1/2  1/2]           [0  1 -1 -1]
//           [0  1  0 -1]         [ 0    0    1 ]
//
// The sums over i are 16 matrix products. They are computed for a block of tiles at a time, which stays in
// cache from the first transform to the last. The transpose of this map, for the gradient of x, is the same
// map with w's channels swapped and its taps reversed. The gradient of w belongs to the same trilinear form:
//
//     dw[o,i] = G^T (sum over tiles of (A dy[o] A^T) * (B^T x[i] B)) G
//
// A NaN or an infinity reaches all outputs of the tiles that read it, up to one pixel further than a direct
// convolution would carry it.
#pragma once

#include "core/isa.h"
#include "core/numeric.h"

namespace aigc {

struct Conv3x3Params {
  DType dtype = DType::float32;
  bool channels_last = false;  // x and y
  bool transposed = false;     // w is [in, out, 3, 3], its taps reversed, instead of [out, in, 3, 3]
  int64_t samples = 0, in_channels = 0, out_channels = 0;
  int64_t height = 0, width = 0, out_height = 0, out_width = 0;
  int64_t pad_y = 0, pad_x = 0;  // on either side
  const void* x = nullptr;
  const void* w = nullptr;
  const void* b = nullptr;  // [out_channels] or none
  const void* dy = nullptr;
  void* y = nullptr;            // or dw
  void* transformed = nullptr;  // acc_t: w's transform, or the partial sums of dw's, one for each chunk
  int64_t chunks = 0;           // of blocks of tiles, for dw
};

// Rounded up to a multiple of the channels that any kernel processes at a time.
AIGC_INLINE int64_t padded_channels(int64_t channels) { return round_up(channels, 32); }

// Elements of w's transform, and no fewer than the sums of one chunk have.
AIGC_INLINE int64_t transformed_size(const Conv3x3Params& p) {
  return 16 * padded_channels(p.in_channels) * padded_channels(p.out_channels);
}

constexpr int64_t kConvTiles = 48;  // per block
AIGC_INLINE int64_t conv3x3_blocks(const Conv3x3Params& p) {
  return ceil_div(p.samples * ceil_div(p.out_height, 2) * ceil_div(p.out_width, 2), kConvTiles);
}

// An item of dw: this many output channels of one chunk of the blocks. The number of chunks depends only on
// the shape, and with it the order of the sums.
constexpr int64_t kGradientOuts = 128;
AIGC_INLINE int64_t gradient_chunks(const Conv3x3Params& p) {
  const int64_t blocks = conv3x3_blocks(p);
  return blocks < 16 ? blocks > 0 : blocks < 64 ? blocks / 8 : 8;
}
AIGC_INLINE int64_t gradient_items(const Conv3x3Params& p) {
  return p.chunks * ceil_div(p.out_channels, kGradientOuts);
}

}  // namespace aigc

AIGC_KERNEL(conv3x3_filters, Conv3x3Params)           // transformed; items: 32 padded output channels
AIGC_KERNEL(conv3x3_forward, Conv3x3Params)           // y from transformed; items: blocks
AIGC_KERNEL(conv3x3_gradient_chunks, Conv3x3Params)   // transformed; items: gradient_items
AIGC_KERNEL(conv3x3_gradient_filters, Conv3x3Params)  // y = dw; items: input channels
