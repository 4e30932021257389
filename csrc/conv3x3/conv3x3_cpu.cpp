#include "conv3x3/conv3x3.h"

#include "core/matmul.h"
#include "core/scratch.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int64_t kOuts = 16;  // output channels whose sums stay in L1 for all tiles of a block
static_assert(32 % kOuts == 0);

template <class V>
inline void input_transform(V d0, V d1, V d2, V d3, V (&out)[4]) {
  out[0] = d0 - d2;
  out[1] = d1 + d2;
  out[2] = d2 - d1;
  out[3] = d1 - d3;
}

template <class V>
inline void output_transform(const V (&m)[16], V (&y)[2][2]) {
  V s[2][4];
  for (int b = 0; b < 4; ++b) {
    s[0][b] = m[b] + m[4 + b] + m[8 + b];
    s[1][b] = m[4 + b] - m[8 + b] - m[12 + b];
  }
  for (int a = 0; a < 2; ++a) {
    y[a][0] = s[a][0] + s[a][1] + s[a][2];
    y[a][1] = s[a][1] - s[a][2] - s[a][3];
  }
}

// The transpose of output_transform, along one side.
template <class V>
inline void spread(V y0, V y1, V (&out)[4]) {
  out[0] = y0;
  out[1] = y0 + y1;
  out[2] = y0 - y1;
  out[3] = -y1;
}

// The transpose of the filters' transform.
template <class V>
inline void gather_filter(const V (&u)[16], V (&w)[9]) {
  V rows[3][4];
  const auto fold = [](V a, V b, V c, V d, V& first, V& second, V& third) {
    const V sum = (b + c) * 0.5f;
    first = a + sum;
    second = (b - c) * 0.5f;
    third = sum + d;
  };
  for (int b = 0; b < 4; ++b) fold(u[b], u[4 + b], u[8 + b], u[12 + b], rows[0][b], rows[1][b], rows[2][b]);
  for (int a = 0; a < 3; ++a)
    fold(rows[a][0], rows[a][1], rows[a][2], rows[a][3], w[3 * a], w[3 * a + 1], w[3 * a + 2]);
}

template <class T>
class Convolution {
  using S = acc_t<T>;
  static constexpr int W = kWidth<T>;
  // At once, of planes (NCHW): kRows output channels times 3 vectors of tiles; of pixels (NHWC): 6 tiles times 2
  // vectors of channels.
  static constexpr int kRows = AIGC_VECTOR_BYTES == 64 ? 8 : 4;
  static constexpr int64_t kPanel = 3 * W;
  static constexpr int64_t kChannels = 2 * W;
  static_assert(kConvTiles % kPanel == 0 && kConvTiles % 6 == 0 && 32 % kChannels == 0);
  static constexpr int64_t kBlock = kConvTiles;
  static constexpr int64_t kDepth = 2 * kBlock;  // tiles in one product of the filters' gradient
  static constexpr int64_t kRow = kBlock + W;    // of v, for planes: whole vectors are stored

 public:
  explicit Convolution(const Conv3x3Params& p)
      : p_(p),
        rows_(ceil_div(p.out_height, 2)),
        columns_(ceil_div(p.out_width, 2)),
        outs_(padded_channels(p.out_channels)),
        u_(static_cast<S*>(p.transformed)) {}

  // ---- filters: [outs / group][16][in][group]

  void filters(int64_t begin, int64_t end) const {
    if (p_.channels_last)
      grouped_filters<kChannels>(begin, end);
    else
      grouped_filters<kRows>(begin, end);
  }

  // ---- images

  void blocks(int64_t begin, int64_t end) const {
    // v: transformed inputs of a block, m: sums of a block for some output channels
    const Scratch<S> v(16 * p_.in_channels * kRow), m(16 * max(kOuts, kChannels) * kBlock + W);
    const Scratch<S> lines(8 * line_length());
    for (int64_t block = begin; block < end; ++block) {
      if (p_.channels_last)
        pixels(block, v.get(), m.get());
      else
        planes(block, v.get(), m.get(), lines.get());
    }
  }

  // ---- the filters' gradient: [chunk][16][in][out], both padded

  void gradient_chunks(int64_t begin, int64_t end) const {
    const int64_t ins = padded_channels(p_.in_channels), blocks = conv3x3_blocks(p_);
    const Scratch<S> v(16 * kDepth * ins), m(16 * kDepth * kGradientOuts), lines(8 * line_length());
    const Scratch<S> planes(p_.channels_last ? 0 : 16 * W * kRow);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t chunk = item % p_.chunks, first_out = item / p_.chunks * kGradientOuts;
      const int64_t outs = min(kGradientOuts, p_.out_channels - first_out);
      S* sums = u_ + chunk * 16 * ins * outs_ + first_out;
      const int64_t first = blocks * chunk / p_.chunks, last = blocks * (chunk + 1) / p_.chunks;
      for (int64_t block = first; block < last; block += kDepth / kBlock) {
        int64_t tiles = 0;
        for (int64_t b = block; b < min(block + kDepth / kBlock, last); ++b) {
          S *to_v = &v[tiles * ins], *to_m = &m[tiles * kGradientOuts];
          if (p_.channels_last)
            gradient_inputs_of_pixels(b, first_out, outs, ins, to_v, to_m);
          else
            gradient_inputs_of_planes(b, first_out, outs, ins, to_v, to_m, planes.get(), lines.get());
          tiles += tiles_of(b);
        }
        for (int ab = 0; ab < 16; ++ab)
          for (int64_t o = 0; o < outs; o += kChannels)
            for (int64_t i = 0; i < p_.in_channels; i += kRows) {
              const auto product = [&](auto adds) {
                tile<kRows, 2, decltype(adds)::value>(&v[ab * kDepth * ins + i], 1, ins,
                                                      &m[ab * kDepth * kGradientOuts + o], kGradientOuts,
                                                      tiles, sums + (ab * ins + i) * outs_ + o, outs_);
              };
              if (block == first)
                product(std::false_type());
              else
                product(std::true_type());
            }
      }
    }
  }

  void gradient_filters(int64_t begin, int64_t end) const {
    const int64_t ins = padded_channels(p_.in_channels);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t o = 0; o < p_.out_channels; o += W) {
        Vec<S> u[16] = {}, w[9];
        for (int ab = 0; ab < 16; ++ab)
          for (int64_t chunk = 0; chunk < p_.chunks; ++chunk)
            u[ab] += load(u_ + ((chunk * 16 + ab) * ins + i) * outs_ + o);
        gather_filter(u, w);
        T* to = static_cast<T*>(p_.y);
        for (int k = 0; k < 9; ++k) {
          T lanes[W];
          store(lanes, w[k]);
          for (int64_t l = 0; l < min(W, p_.out_channels - o); ++l)
            to[((o + l) * p_.in_channels + i) * 9 + k] = lanes[l];
        }
      }
  }

 private:
  // Some input channels at a time: what they have in one of the 16 places is next to each other, whole lines
  // of a cache, and the 16 places are so far apart that a cache has no room for many lines of each.
  template <int64_t kGroup>
  void grouped_filters(int64_t begin, int64_t end) const {
    constexpr int64_t kIns = 16, kTogether = min(W, kGroup);
    alignas(64) S made[16][kIns][W];
    for (int64_t o = begin; o < end; o += W)
      for (int64_t i = 0; i < p_.in_channels; i += kIns) {
        const int64_t ins = min(kIns, p_.in_channels - i);
        for (int64_t j = 0; j < ins; ++j) {
          Vec<S> w[9], u[16];
          read_filters(o, i + j, w);
          transform_filter(w, u);
          for (int ab = 0; ab < 16; ++ab) store(made[ab][j], u[ab]);
        }
        for (int64_t l = 0; l < W; l += kTogether)
          for (int ab = 0; ab < 16; ++ab) {
            S* to = u_ + (((o + l) / kGroup * 16 + ab) * p_.in_channels + i) * kGroup + (o + l) % kGroup;
            for (int64_t j = 0; j < ins; ++j)
              std::memcpy(to + j * kGroup, made[ab][j] + l, sizeof(S) * kTogether);
          }
      }
  }

  // The filters of W output channels, tap by tap.
  void read_filters(int64_t o, int64_t i, Vec<S> (&w)[9]) const {
    const int64_t n = min(W, p_.out_channels - o), step = 9 * (p_.transposed ? 1 : p_.in_channels);
    const T* from =
        static_cast<const T*>(p_.w) + (p_.transposed ? i * p_.out_channels * 9 : i * 9) + o * step;
    for (int k = 0; k < 9; ++k) {
      const T* tap = from + (p_.transposed ? 8 - k : k);
      w[k] = Vec<S>{};
      if (n == W)
        for (int l = 0; l < W; ++l) w[k][l] = load_scalar(tap + l * step);
      else
        for (int l = 0; l < n; ++l) w[k][l] = load_scalar(tap + l * step);
    }
  }

  static void transform_filter(const Vec<S> (&w)[9], Vec<S> (&u)[16]) {
    Vec<S> rows[4][3];
    for (int b = 0; b < 3; ++b) {
      const Vec<S> ends = (w[b] + w[6 + b]) * S(0.5), middle = w[3 + b] * S(0.5);
      rows[0][b] = w[b];
      rows[1][b] = ends + middle;
      rows[2][b] = ends - middle;
      rows[3][b] = w[6 + b];
    }
    for (int a = 0; a < 4; ++a) {
      const Vec<S> ends = (rows[a][0] + rows[a][2]) * S(0.5), middle = rows[a][1] * S(0.5);
      u[4 * a] = rows[a][0];
      u[4 * a + 1] = ends + middle;
      u[4 * a + 2] = ends - middle;
      u[4 * a + 3] = rows[a][2];
    }
  }

  int64_t tiles_of(int64_t block) const {
    return min(kBlock, p_.samples * rows_ * columns_ - block * kBlock);
  }

  // Calls f(sample, row of tiles, first column, columns, position in the block) for the block's part of each
  // row of tiles.
  template <class F>
  void for_segments(int64_t block, F&& f) const {
    const int64_t first = block * kBlock, count = tiles_of(block);
    for (int64_t done = 0; done < count;) {
      const int64_t tile = first + done, column = tile % columns_, row = tile / columns_;
      const int64_t n = min(columns_ - column, count - done);
      f(row / rows_, row % rows_, column, n, done);
      done += n;
    }
  }

  // A line holds the even or the odd columns of a row, with zeros on both sides.
  int64_t line_length() const { return margin() + columns_ + p_.pad_x + 2 * W + 2; }
  int64_t margin() const { return p_.pad_x / 2 + 1; }

  void planes(int64_t block, S* v, S* m, S* lines) const {
    const int64_t depth = p_.in_channels;
    const int64_t used = round_up(tiles_of(block), kPanel);
    for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
      for (int64_t i = 0; i < depth; ++i)
        transform_planes(n, i, row, column, tiles, lines, v + i * kRow + at, depth * kRow);
    });
    for (int64_t o = 0; o < p_.out_channels; o += kOuts) {
      for (int ab = 0; ab < 16; ++ab)
        for (int64_t panel = 0; panel < used; panel += kPanel)
          for (int64_t r = 0; r < kOuts; r += kRows)
            tile<kRows, 3, false>(u_ + ((o + r) * 16 + ab * kRows) * depth, 1, kRows,
                                  v + ab * depth * kRow + panel, kRow, depth,
                                  m + (ab * kOuts + r) * kBlock + panel, kBlock);
      for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
        for (int64_t r = 0; r < min(kOuts, p_.out_channels - o); ++r)
          write_planes(n, o + r, row, column, tiles, m + r * kBlock + at);
      });
    }
  }

  // The tiles from (row, column) on, of one channel. What is stored beyond them is overwritten by the next.
  void transform_planes(int64_t n, int64_t i, int64_t row, int64_t column, int64_t tiles, S* lines, S* v,
                        int64_t v_step) const {
    const int64_t top = 2 * row - p_.pad_y, left = 2 * column - p_.pad_x, line = line_length();
    const T* x = static_cast<const T*>(p_.x) + (n * p_.in_channels + i) * p_.height * p_.width;
    const T* rows[4];
    for (int a = 0; a < 4; ++a)
      rows[a] = top + a >= 0 && top + a < p_.height ? x + (top + a) * p_.width : nullptr;
    // The columns that are read, from an even one on: transformed down the columns, then split into even and
    // odd ones.
    const int64_t begin = max(0, left) / 2 * 2, end = min(p_.width, left + 2 * tiles + 2);
    for (int64_t j = begin; j < end; j += 2 * W) {
      Vec<S> low[4], high[4];
      const auto down = [&](int64_t at, Vec<S>(&out)[4]) {
        const auto value = [&](int a) { return rows[a] ? load_upto(rows[a] + at, p_.width - at) : Vec<S>{}; };
        input_transform(value(0), value(1), value(2), value(3), out);
      };
      down(j, low);
      down(j + W, high);
      for (int a = 0; a < 4; ++a) {
        Vec<S> even, odd;
        split_pairs(low[a], high[a], even, odd);
        store(lines + 2 * a * line + margin() + j / 2, even);
        store(lines + (2 * a + 1) * line + margin() + j / 2, odd);
      }
    }
    const int64_t half = (left - (left & 1)) / 2 + margin();
    for (int a = 0; a < 4; ++a) {
      const S* even = lines + 2 * a * line + half;
      const S* odd = even + line;
      const S *d0 = left & 1 ? odd : even, *d1 = left & 1 ? even + 1 : odd;
      for (int64_t t = 0; t < tiles; t += W) {
        Vec<S> out[4];
        input_transform(load(d0 + t), load(d1 + t), load(d0 + t + 1), load(d1 + t + 1), out);
        for (int b = 0; b < 4; ++b) store(v + (4 * a + b) * v_step + t, out[b]);
      }
    }
  }

  void write_planes(int64_t n, int64_t o, int64_t row, int64_t column, int64_t tiles, const S* m) const {
    T* y = static_cast<T*>(p_.y) + (n * p_.out_channels + o) * p_.out_height * p_.out_width;
    const Vec<S> b = broadcast<Vec<S>>(p_.b ? load_scalar(static_cast<const T*>(p_.b) + o) : S(0));
    for (int64_t t = 0; t < tiles; t += W) {
      Vec<S> in[16], out[2][2];
      for (int ab = 0; ab < 16; ++ab) in[ab] = load(m + ab * kOuts * kBlock + t);
      output_transform(in, out);
      const int64_t x = 2 * (column + t), valid = min(2 * (tiles - t), p_.out_width - x);
      for (int64_t a = 0; a < min(2, p_.out_height - 2 * row); ++a) {
        T* to = y + (2 * row + a) * p_.out_width + x;
        Vec<S> low, high;
        join_pairs(out[a][0], out[a][1], low, high);
        store_upto(to, low + b, valid);
        store_upto(to + W, high + b, valid - W);
      }
    }
  }

  void pixels(int64_t block, S* v, S* m) const {
    const int64_t depth = p_.in_channels;
    for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
      for (int64_t t = 0; t < tiles; ++t)
        transform_pixels(n, row, column + t, v + (at + t) * depth, depth * kBlock);
    });
    for (int64_t o = 0; o < p_.out_channels; o += kChannels) {
      for (int ab = 0; ab < 16; ++ab)
        for (int64_t t = 0; t < tiles_of(block); t += 6)
          tile<6, 2, false>(v + (ab * kBlock + t) * depth, depth, 1, u_ + (o * 16 + ab * kChannels) * depth,
                            kChannels, depth, m + (ab * kBlock + t) * kChannels, kChannels);
      for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
        for (int64_t t = 0; t < tiles; ++t) write_pixels(n, o, row, column + t, m + (at + t) * kChannels);
      });
    }
  }

  void transform_pixels(int64_t n, int64_t row, int64_t column, S* v, int64_t v_step) const {
    const int64_t depth = p_.in_channels, top = 2 * row - p_.pad_y, left = 2 * column - p_.pad_x;
    const T* x = static_cast<const T*>(p_.x) + n * p_.height * p_.width * depth;
    const T* pixel[16];
    for (int a = 0; a < 4; ++a)
      for (int b = 0; b < 4; ++b) {
        const bool inside = top + a >= 0 && top + a < p_.height && left + b >= 0 && left + b < p_.width;
        pixel[4 * a + b] = inside ? x + ((top + a) * p_.width + left + b) * depth : nullptr;
      }
    for_vectors<T>(0, depth, [&](int64_t i, auto whole) {
      Vec<S> half[4][4];
      const auto at = [&](int ab) {
        return pixel[ab] ? load_lanes(pixel[ab] + i, depth - i, whole) : Vec<S>{};
      };
      for (int b = 0; b < 4; ++b) input_transform(at(b), at(4 + b), at(8 + b), at(12 + b), half[b]);
      for (int a = 0; a < 4; ++a) {
        Vec<S> out[4];
        input_transform(half[0][a], half[1][a], half[2][a], half[3][a], out);
        for (int b = 0; b < 4; ++b) store_lanes(v + (4 * a + b) * v_step + i, out[b], depth - i, whole);
      }
    });
  }

  void write_pixels(int64_t n, int64_t o, int64_t row, int64_t column, const S* m) const {
    T* y = static_cast<T*>(p_.y) + n * p_.out_height * p_.out_width * p_.out_channels + o;
    for (int64_t j = 0; j < kChannels; j += W) {
      Vec<S> in[16], out[2][2];
      for (int ab = 0; ab < 16; ++ab) in[ab] = load(m + ab * kBlock * kChannels + j);
      output_transform(in, out);
      const int64_t valid = p_.out_channels - o - j;
      if (valid <= 0) break;
      const Vec<S> bias = p_.b ? load_upto(static_cast<const T*>(p_.b) + o + j, valid) : Vec<S>{};
      for (int64_t a = 0; a < min(2, p_.out_height - 2 * row); ++a)
        for (int64_t b = 0; b < min(2, p_.out_width - 2 * column); ++b)
          store_upto(y + ((2 * row + a) * p_.out_width + 2 * column + b) * p_.out_channels + j,
                     out[a][b] + bias, valid);
    }
  }

  void gradient_inputs_of_pixels(int64_t block, int64_t first_out, int64_t outs, int64_t ins, S* v,
                                 S* m) const {
    for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
      for (int64_t t = 0; t < tiles; ++t) {
        transform_pixels(n, row, column + t, v + (at + t) * ins, ins * kDepth);
        spread_pixels(n, first_out, outs, row, column + t, m + (at + t) * kGradientOuts);
      }
    });
  }

  void spread_pixels(int64_t n, int64_t first_out, int64_t outs, int64_t row, int64_t column, S* m) const {
    const T* dy =
        static_cast<const T*>(p_.dy) + n * p_.out_height * p_.out_width * p_.out_channels + first_out;
    const auto pixel = [&](int64_t a, int64_t b) {
      return 2 * row + a < p_.out_height && 2 * column + b < p_.out_width
                 ? dy + ((2 * row + a) * p_.out_width + 2 * column + b) * p_.out_channels
                 : nullptr;
    };
    const T* pixels[4] = {pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)};
    for_vectors<T>(0, outs, [&](int64_t o, auto whole) {
      const auto at = [&](int k) {
        return pixels[k] ? load_lanes(pixels[k] + o, outs - o, whole) : Vec<S>{};
      };
      spread_tile(at(0), at(1), at(2), at(3),
                  [&](int ab, Vec<S> value) { store(m + ab * kDepth * kGradientOuts + o, value); });
    });
  }

  template <class F>
  static void spread_tile(Vec<S> y00, Vec<S> y01, Vec<S> y10, Vec<S> y11, F&& put) {
    Vec<S> left[4], right[4];
    spread(y00, y10, left);
    spread(y01, y11, right);
    for (int a = 0; a < 4; ++a) {
      Vec<S> out[4];
      spread(left[a], right[a], out);
      for (int b = 0; b < 4; ++b) put(4 * a + b, out[b]);
    }
  }

  // The same from planes, W channels at a time, which are transposed to be adjacent.
  void gradient_inputs_of_planes(int64_t block, int64_t first_out, int64_t outs, int64_t ins, S* v, S* m,
                                 S* planes, S* lines) const {
    const auto turn = [&](S* to, int64_t row_length) {
      for (int ab = 0; ab < 16; ++ab)
        for (int64_t t = 0; t < kBlock; t += W) {
          Vec<S> square[W];
          for (int l = 0; l < W; ++l) square[l] = load(planes + (ab * W + l) * kRow + t);
          transpose(square);
          for (int l = 0; l < W; ++l) store(to + (ab * kDepth + t + l) * row_length, square[l]);
        }
    };
    for (int64_t i = 0; i < p_.in_channels; i += W) {
      for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
        for (int64_t l = 0; l < min(W, p_.in_channels - i); ++l)
          transform_planes(n, i + l, row, column, tiles, lines, planes + l * kRow + at, W * kRow);
      });
      turn(v + i, ins);
    }
    for (int64_t o = 0; o < outs; o += W) {
      for_segments(block, [&](int64_t n, int64_t row, int64_t column, int64_t tiles, int64_t at) {
        for (int64_t l = 0; l < min(W, outs - o); ++l)
          spread_planes(n, first_out + o + l, row, column, tiles, planes + l * kRow + at);
      });
      turn(m + o, kGradientOuts);
    }
  }

  void spread_planes(int64_t n, int64_t o, int64_t row, int64_t column, int64_t tiles, S* m) const {
    const T* dy = static_cast<const T*>(p_.dy) + (n * p_.out_channels + o) * p_.out_height * p_.out_width;
    for (int64_t t = 0; t < tiles; t += W) {
      Vec<S> left[2] = {}, right[2] = {};
      const int64_t x = 2 * (column + t);
      for (int64_t a = 0; a < min(2, p_.out_height - 2 * row); ++a) {
        const T* from = dy + (2 * row + a) * p_.out_width + x;
        const int64_t valid = p_.out_width - x;
        const Vec<S> low = load_upto(from, valid);
        split_pairs(low, valid > W ? load_upto(from + W, valid - W) : Vec<S>{}, left[a], right[a]);
      }
      spread_tile(left[0], right[0], left[1], right[1],
                  [&](int ab, Vec<S> value) { store(m + ab * W * kRow + t, value); });
    }
  }

  const Conv3x3Params& p_;
  const int64_t rows_, columns_;  // of tiles
  const int64_t outs_;            // padded_channels of the outputs
  S* const u_;
};

}  // namespace

void conv3x3_filters(const Conv3x3Params& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { Convolution<T>(p).filters(32 * begin, 32 * end); });
}

void conv3x3_gradient_chunks(const Conv3x3Params& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { Convolution<T>(p).gradient_chunks(begin, end); });
}

void conv3x3_gradient_filters(const Conv3x3Params& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { Convolution<T>(p).gradient_filters(begin, end); });
}

void conv3x3_forward(const Conv3x3Params& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { Convolution<T>(p).blocks(begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
