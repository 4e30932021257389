// Traffic per element (e = element size): forward 2e (+1/8 per mask plane), backward 2e + 1/8 per plane with
// the mask, 3e for smooth activations. The gradients of the parameters come from the same pass.
#include "bias_act/bias_act.h"

#include <memory>

#include "core/reduce.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

template <class T>
constexpr int kGroup = kWidth<T> < 8 ? 8 : kWidth<T>;  // elements whose mask bits fill whole bytes

template <class T>
struct Row {
  int64_t offset, length;
  acc_t<T> add;
  const T* vec;
  acc_t<T> vec_scale;
  acc_t<T> noise;  // the row's noise, where noise is constant along it
};

template <class T>
class Rows {
 public:
  explicit Rows(const BiasActParams& p)
      : p_(p), bias_(static_cast<const T*>(p.bias)), noise_(static_cast<const T*>(p.noise)) {
    if (noise_) strength_ = load_scalar(static_cast<const T*>(p.strength));
    if (bias_ && p.vec_is_bias && p.row_length != p.channels) {
      periods_.reset(new T[p.row_length]);
      for (int64_t i = 0; i < p.row_length; ++i) periods_[i] = bias_[i / p.inner % p.channels];
    }
  }

  Row<T> operator[](int64_t index) const {
    Row<T> row{};
    row.offset = index * p_.row_length;
    row.length = min(p_.numel - row.offset, p_.row_length);
    if (p_.vec_is_bias) {
      row.vec = periods_ ? periods_.get() : bias_;
      row.vec_scale = 1;
      if (noise_) {
        row.noise = load_scalar(noise_ + index % p_.noise_period);
        row.add = strength_ * row.noise;
      }
    } else {
      if (bias_) row.add = load_scalar(bias_ + index % p_.channels);
      if (noise_) {
        row.vec = noise_ + index / p_.channels * p_.inner % p_.noise_period;
        row.vec_scale = strength_;
      }
    }
    return row;
  }

 private:
  const BiasActParams& p_;
  const T* bias_;
  const T* noise_;
  acc_t<T> strength_ = 0;
  std::unique_ptr<T[]> periods_;
};

template <class T, class Whole>
inline Vec<T> preactivation(const Row<T>& row, const T* x, int64_t i, Whole whole) {
  Vec<T> z = load_lanes(x + row.offset + i, row.length - i, whole) + row.add;
  if (row.vec) z += row.vec_scale * load_lanes(row.vec + i, row.length - i, whole);
  return z;
}

template <class F>
void for_rows(const BiasActParams& p, int64_t chunk, F&& f) {
  const Range rows = part_of(p.rows, p.rows_per_chunk, chunk);
  for (int64_t row = rows.begin; row < rows.end; ++row) f(row);
}

template <class T, Act A, bool kSave>
void forward(const BiasActParams& p, int64_t begin, int64_t end) {
  constexpr bool kBranchPlane = kSave && (A == Act::relu || A == Act::lrelu);
  constexpr int kVectors = kGroup<T> / kWidth<T>;
  const auto* x = static_cast<const T*>(p.x);
  auto* y = static_cast<T*>(p.y);
  const ClampedActivation<A, acc_t<T>> act(p);
  const int64_t row_bytes = mask_row_bytes(p);
  const Rows<T> rows(p);

  // One vector: writes y, returns the bits of the two planes.
  struct Bits {
    uint32_t branch, inside;
  };
  const auto vector = [&](const Row<T>& row, int64_t i, auto whole) {
    Bits bits{};
    const Vec<T> z = preactivation(row, x, i, whole);
    Vec<T> t = act.unclamped(z);
    if constexpr (kBranchPlane) bits.branch = mask_to_bits(~(z <= Vec<T>{}));
    if (act.clamped) {
      const Vec<T> limited = act.clamp(t);
      if constexpr (kSave) bits.inside = mask_to_bits(limited == t);
      t = limited;
    }
    store_lanes(y + row.offset + i, t, row.length - i, whole);
    return bits;
  };

  for (int64_t chunk = begin; chunk < end; ++chunk) {
    for_rows(p, chunk, [&](int64_t index) {
      const Row<T> row = rows[index];
      if constexpr (!kSave) {
        for_vectors<T>(0, row.length, [&](int64_t i, auto whole) { vector(row, i, whole); });
      } else {
        uint8_t* branch_bytes = p.mask + index * row_bytes;
        uint8_t* inside_bytes = branch_bytes + (kBranchPlane ? p.plane_bytes : 0);
        const auto put = [&](int64_t i, Bits bits, int bytes) {
          for (int byte = 0; byte < bytes; ++byte) {
            if constexpr (kBranchPlane) branch_bytes[i / 8 + byte] = uint8_t(bits.branch >> (8 * byte));
            if (act.clamped) inside_bytes[i / 8 + byte] = uint8_t(bits.inside >> (8 * byte));
          }
        };
        int64_t i = 0;
        for (; i + kGroup<T> <= row.length; i += kGroup<T>) {
          Bits group{};
          for (int j = 0; j < kVectors; ++j) {
            const Bits bits = vector(row, i + j * kWidth<T>, std::true_type());
            group.branch |= bits.branch << (j * kWidth<T>);
            group.inside |= bits.inside << (j * kWidth<T>);
          }
          put(i, group, kGroup<T> / 8);
        }
        Bits rest{};
        for_vectors<T>(i, row.length, [&](int64_t at, auto whole) {
          const Bits bits = vector(row, at, whole);
          rest.branch |= bits.branch << (at - i);
          rest.inside |= bits.inside << (at - i);
        });
        put(i, rest, int((row.length - i + 7) / 8));
      }
    });
  }
}

// Goes through the rows of the chunks. gradient_of_z(row, index, i, whole) computes, stores and returns one
// vector. With kSum the vectors are summed: over each row where the bias is constant on it, else column by
// column; and so are their products with the noise.
template <class T, bool kSum, class F>
void backward_rows(const BiasActParams& p, int64_t begin, int64_t end, F&& gradient_of_z) {
  const Rows<T> rows(p);
  const bool by_column = kSum && p.bias_partials && p.vec_is_bias;
  const bool with_noise = kSum && p.strength_partials && !p.vec_is_bias;
  ColumnSums<T> columns(by_column ? p.row_length : 0);

  for (int64_t chunk = begin; chunk < end; ++chunk) {
    double strength = 0;
    if (by_column) columns.begin(p.bias_partials + chunk * p.row_length);
    for_rows(p, chunk, [&](int64_t index) {
      const Row<T> row = rows[index];
      if constexpr (!kSum) {
        for_vectors<T>(0, row.length, [&](int64_t i, auto whole) { gradient_of_z(row, index, i, whole); });
        return;
      }
      double row_sum = 0, noise_sum = 0;
      constexpr int64_t kBlock = kSumBlock * kWidth<T>;
      for (int64_t block = 0; block < row.length; block += kBlock) {
        const int64_t block_end = min(block + kBlock, row.length);
        Vec<T> sum{}, noise{};
        for_vectors<T>(block, block_end, [&](int64_t i, auto whole) {
          const Vec<T> g = gradient_of_z(row, index, i, whole);
          const int64_t n = row.length - i;
          sum += g;
          if (by_column) columns.update(i, [&](Vec<T>(&column)[1]) { column[0] += g; });
          if (with_noise) noise += g * load_lanes(row.vec + i, n, whole);
        });
        row_sum += horizontal_sum(sum);
        noise_sum += horizontal_sum(noise);
      }
      if (p.bias_partials && !p.vec_is_bias) p.bias_partials[index] = row_sum;
      strength += p.vec_is_bias ? row_sum * row.noise : noise_sum;
      if (by_column) columns.end_row();
    });

    if (by_column) columns.end_block();
    if (kSum && p.strength_partials) p.strength_partials[chunk] = strength;
  }
}

// kWidth<T> bits of a row's mask, from element i on.
template <class T>
inline Mask<T> mask_at(const uint8_t* bytes, int64_t i, int64_t row_length) {
  uint32_t bits = bytes[i / 8] >> (i % 8);
  if constexpr (kWidth<T> == 16) bits |= i + 8 < row_length ? uint32_t(bytes[i / 8 + 1]) << 8 : 0;
  return bits_to_mask<T>(bits);
}

template <class T, Act A, bool kSum>
void masked_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dz = static_cast<T*>(p.dz);
  const S positive = S(p.gain), negative = S(p.gain * p.alpha);
  const int64_t row_bytes = mask_row_bytes(p);
  const bool clamped = p.clamp >= 0;

  backward_rows<T, kSum>(p, begin, end, [&](const Row<T>& row, int64_t index, int64_t i, auto whole) {
    const uint8_t* bytes = p.mask + index * row_bytes;
    const Vec<T> g = load_lanes(dy + row.offset + i, row.length - i, whole);
    Vec<T> d = g * positive;
    if constexpr (A != Act::linear) {
      // relu: 0 whatever dy is, as in PyTorch
      const Vec<T> below = A == Act::relu ? Vec<T>{} : g * negative;
      d = select(mask_at<T>(bytes, i, row.length), d, below);
      bytes += p.plane_bytes;
    }
    if (clamped) d = select(mask_at<T>(bytes, i, row.length), d, Vec<T>{});
    store_lanes(dz + row.offset + i, d, row.length - i, whole);
    return d;
  });
}

template <class T, Act A, bool kSum>
void smooth_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  const auto* x = static_cast<const T*>(p.x);
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dz = static_cast<T*>(p.dz);
  const ClampedActivation<A, acc_t<T>> act(p);
  backward_rows<T, kSum>(p, begin, end, [&](const Row<T>& row, int64_t, int64_t i, auto whole) {
    const int64_t n = row.length - i;
    const Vec<T> z = preactivation(row, x, i, whole);
    const Vec<T> d = act.gradient(z, load_lanes(dy + row.offset + i, n, whole));
    store_lanes(dz + row.offset + i, d, n, whole);
    return d;
  });
}

template <class T, Act A>
void smooth_double_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  const auto* x = static_cast<const T*>(p.x);
  const auto* dy = static_cast<const T*>(p.dy);
  const auto* u = static_cast<const T*>(p.u);
  auto* grad_dy = static_cast<T*>(p.dz);
  auto* grad_z = static_cast<T*>(p.dz2);
  const ClampedActivation<A, acc_t<T>> act(p);
  backward_rows<T, true>(p, begin, end, [&](const Row<T>& row, int64_t, int64_t i, auto whole) {
    const int64_t at = row.offset + i, n = row.length - i;
    const Vec<T> z = preactivation(row, x, i, whole);
    Vec<T> of_dy, of_z;
    act.second_gradients(z, load_lanes(dy + at, n, whole), load_lanes(u + at, n, whole), of_dy, of_z);
    store_lanes(grad_dy + at, of_dy, n, whole);
    store_lanes(grad_z + at, of_z, n, whole);
    return of_z;
  });
}

template <class T>
void reduce(const BiasActParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = chunk_count(p);
  if (begin == 0 && p.dstrength)
    store_scalar(static_cast<T*>(p.dstrength), acc_t<T>(sum_of(p.strength_partials, chunks)));
  for (int64_t channel = begin; p.dbias && channel < end; ++channel) {
    double total = 0;
    if (p.vec_is_bias) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t period = 0; period < p.row_length; period += p.channels * p.inner)
          for (int64_t i = 0; i < p.inner; ++i)
            total += p.bias_partials[chunk * p.row_length + period + channel * p.inner + i];
    } else {
      total = sum_of(p.bias_partials + channel, p.rows / p.channels, p.channels);
    }
    store_scalar(static_cast<T*>(p.dbias) + channel, acc_t<T>(total));
  }
}

}  // namespace

void bias_act_forward(const BiasActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (is_piecewise_linear(A))
        if (p.mask) return forward<T, A, true>(p, begin, end);
      forward<T, A, false>(p, begin, end);
    });
  });
}

void bias_act_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      const bool sum = p.bias_partials || p.strength_partials;
      if constexpr (is_piecewise_linear(A))
        sum ? masked_backward<T, A, true>(p, begin, end) : masked_backward<T, A, false>(p, begin, end);
      else
        sum ? smooth_backward<T, A, true>(p, begin, end) : smooth_backward<T, A, false>(p, begin, end);
    });
  });
}

void bias_act_double_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    dispatch_act(p.act, [&]<Act A>(ActTag<A>) {
      if constexpr (!is_piecewise_linear(A)) smooth_double_backward<T, A>(p, begin, end);
    });
  });
}

void bias_act_reduce(const BiasActParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) { reduce<T>(p, begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
