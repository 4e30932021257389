// Bytes per element (e = element size): forward 2e (+1/8 per mask plane), backward 2e + 1/8 per plane with the mask,
// 3e for the smooth activations, and the parameters' gradients in the same pass.
#include "bias_act/bias_act.h"

#include <memory>

#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

template <class T>
constexpr int kGroup = kWidth<T> < 8 ? 8 : kWidth<T>;  // elements whose mask bits fill whole bytes
// Sums run in acc_t<T> over this many additions and are then passed on to float64: the error stays that of a short sum.
constexpr int kSumBlock = 64;

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
    row.length = p_.numel - row.offset < p_.row_length ? p_.numel - row.offset : p_.row_length;
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

template <class T>
inline Vec<T> preactivation(const Row<T>& row, const T* x, int64_t i) {
  Vec<T> z = load_upto(x + i, row.length - i) + row.add;
  if (row.vec) z += row.vec_scale * load_upto(row.vec + i, row.length - i);
  return z;
}

template <class F>
void for_rows(const BiasActParams& p, int64_t chunk, F&& f) {
  const int64_t first = chunk * p.rows_per_chunk;
  const int64_t last = first + p.rows_per_chunk < p.rows ? first + p.rows_per_chunk : p.rows;
  for (int64_t row = first; row < last; ++row) f(row);
}

template <class T, Act A, bool kSave>
void forward(const BiasActParams& p, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  constexpr bool kBranchPlane = kSave && (A == Act::relu || A == Act::lrelu);
  const auto* x = static_cast<const T*>(p.x);
  auto* y = static_cast<T*>(p.y);
  const S alpha = S(p.alpha), gain = S(p.gain), clamp = S(p.clamp);
  const bool clamped = p.clamp >= 0;
  const int64_t row_bytes = mask_row_bytes(p);

  const Rows<T> rows(p);
  const auto one_row = [&](int64_t index) {
    const Row<T> row = rows[index];
    uint8_t* branch_bytes = kSave ? p.mask + index * row_bytes : nullptr;
    uint8_t* clamp_bytes = branch_bytes + (kBranchPlane ? p.plane_bytes : 0);

    const auto group = [&](int64_t i, int vectors) {
      uint32_t branch_bits = 0, inside_bits = 0;
      for (int j = 0; j < vectors; ++j) {
        const int64_t at = i + j * kWidth<T>;
        const Vec<T> z = preactivation(row, x + row.offset, at);
        Vec<T> t = gain * activation<A>(z, alpha);
        if constexpr (kBranchPlane) branch_bits |= mask_to_bits(~(z <= Vec<T>{})) << (j * kWidth<T>);
        if (clamped) {
          const Mask<T> above = t > clamp, below = t < -clamp;
          if constexpr (kSave) inside_bits |= mask_to_bits(~(above | below) & (t == t)) << (j * kWidth<T>);
          t = select(above, broadcast<Vec<T>>(clamp), select(below, broadcast<Vec<T>>(-clamp), t));
        }
        store_upto(y + row.offset + at, t, row.length - at);
      }
      if constexpr (kSave) {
        const int bytes = (vectors * kWidth<T> + 7) / 8;
        const int64_t available = (row.length + 7) / 8 - i / 8;
        for (int byte = 0; byte < bytes && byte < available; ++byte) {
          if constexpr (kBranchPlane) branch_bytes[i / 8 + byte] = uint8_t(branch_bits >> (8 * byte));
          if (clamped) clamp_bytes[i / 8 + byte] = uint8_t(inside_bits >> (8 * byte));
        }
      }
    };

    int64_t i = 0;
    for (; i + kGroup<T> <= row.length; i += kGroup<T>) group(i, kGroup<T> / kWidth<T>);
    if (i < row.length) group(i, int((row.length - i + kWidth<T> - 1) / kWidth<T>));
  };
  for (int64_t chunk = begin; chunk < end; ++chunk) for_rows(p, chunk, one_row);
}

// The sums of one chunk: over each row where the bias is constant on it, else column by column over the rows.
template <class T>
class Sums {
 public:
  explicit Sums(const BiasActParams& p)
      : p_(p), columns_(p.bias_partials && p.vec_is_bias ? new acc_t<T>[p.row_length]() : nullptr) {}

  void begin_chunk(int64_t chunk) {
    strength_ = 0;
    rows_ = 0;
    totals_ = columns_ ? p_.bias_partials + chunk * p_.row_length : nullptr;
    for (int64_t i = 0; totals_ && i < p_.row_length; ++i) totals_[i] = 0;
  }
  void begin_row() { row_sum_ = noise_sum_ = 0, row_ = noise_ = Vec<T>{}, added_ = 0; }

  void add(const Row<T>& row, int64_t i, Vec<T> g) {
    const int64_t n = row.length - i;
    if (columns_) store_upto(columns_.get() + i, load_upto(columns_.get() + i, n) + g, n);
    row_ += g;
    if (p_.strength_partials && !p_.vec_is_bias) noise_ += g * load_upto(row.vec + i, n);
    if (++added_ == kSumBlock) flush_row();
  }

  void end_row(const Row<T>& row, int64_t index) {
    flush_row();
    if (p_.bias_partials && !p_.vec_is_bias) p_.bias_partials[index] = row_sum_;
    if (p_.strength_partials) strength_ += p_.vec_is_bias ? row_sum_ * row.noise : noise_sum_;
    if (++rows_ == kSumBlock) flush_columns();
  }

  void end_chunk(int64_t chunk) {
    flush_columns();
    if (p_.strength_partials) p_.strength_partials[chunk] = strength_;
  }

 private:
  void flush_row() {
    row_sum_ += horizontal_sum(row_);
    noise_sum_ += horizontal_sum(noise_);
    row_ = noise_ = Vec<T>{};
    added_ = 0;
  }
  void flush_columns() {
    for (int64_t i = 0; columns_ && i < p_.row_length; ++i) {
      totals_[i] += columns_[i];
      columns_[i] = 0;
    }
    rows_ = 0;
  }

  const BiasActParams& p_;
  std::unique_ptr<acc_t<T>[]> columns_;
  double* totals_ = nullptr;
  double strength_ = 0, row_sum_ = 0, noise_sum_ = 0;
  Vec<T> row_{}, noise_{};
  int added_ = 0, rows_ = 0;
};

template <class T, class F>
void backward_rows(const BiasActParams& p, int64_t begin, int64_t end, F&& gradient_of_z) {
  const bool summed = p.bias_partials || p.strength_partials;
  const Rows<T> rows(p);
  Sums<T> sums(p);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    if (summed) sums.begin_chunk(chunk);
    for_rows(p, chunk, [&](int64_t index) {
      const Row<T> row = rows[index];
      if (summed) {
        sums.begin_row();
        for (int64_t i = 0; i < row.length; i += kWidth<T>) sums.add(row, i, gradient_of_z(row, index, i));
        sums.end_row(row, index);
      } else {
        for (int64_t i = 0; i < row.length; i += kWidth<T>) gradient_of_z(row, index, i);
      }
    });
    if (summed) sums.end_chunk(chunk);
  }
}

// kWidth<T> bits of a row's mask, beginning at element i.
template <class T>
inline Mask<T> mask_at(const uint8_t* bytes, int64_t i, int64_t row_length) {
  uint32_t bits = bytes[i / 8] >> (i % 8);
  if constexpr (kWidth<T> == 16) bits |= i + 8 < row_length ? uint32_t(bytes[i / 8 + 1]) << 8 : 0;
  return bits_to_mask<T>(bits);
}

template <class T, Act A>
void masked_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  using S = acc_t<T>;
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dz = static_cast<T*>(p.dz);
  const S positive = S(p.gain), negative = A == Act::relu ? S(0) : S(p.gain * p.alpha);
  const int64_t row_bytes = mask_row_bytes(p);
  const bool clamped = p.clamp >= 0;

  backward_rows<T>(p, begin, end, [&](const Row<T>& row, int64_t index, int64_t i) {
    const uint8_t* bytes = p.mask + index * row_bytes;
    const Vec<T> g = load_upto(dy + row.offset + i, row.length - i);
    Vec<T> d = g * positive;
    if constexpr (A != Act::linear) {
      // relu's zero is a zero whatever dy holds, as in PyTorch
      const Vec<T> below = A == Act::relu ? Vec<T>{} : g * negative;
      d = select(mask_at<T>(bytes, i, row.length), d, below);
      bytes += p.plane_bytes;
    }
    if (clamped) d = select(mask_at<T>(bytes, i, row.length), d, Vec<T>{});
    store_upto(dz + row.offset + i, d, row.length - i);
    return d;
  });
}

// |gain * f(z)| <= clamp
template <class T, Act A>
inline Mask<T> inside_clamp(const BiasActParams& p, Vec<T> z) {
  using S = acc_t<T>;
  const Vec<T> t = S(p.gain) * activation<A>(z, S(p.alpha));
  return (t <= S(p.clamp)) & (t >= -S(p.clamp));
}

template <class T, Act A>
void smooth_backward(const BiasActParams& p, int64_t begin, int64_t end) {
  const auto* x = static_cast<const T*>(p.x);
  const auto* dy = static_cast<const T*>(p.dy);
  auto* dz = static_cast<T*>(p.dz);
  const bool clamped = p.clamp >= 0;
  backward_rows<T>(p, begin, end, [&](const Row<T>& row, int64_t, int64_t i) {
    const Vec<T> z = preactivation(row, x + row.offset, i);
    const Vec<T> g = load_upto(dy + row.offset + i, row.length - i);
    Vec<T> d = g * (acc_t<T>(p.gain) * activation_derivative<A>(z));
    if (clamped) d = select(inside_clamp<T, A>(p, z), d, Vec<T>{});
    store_upto(dz + row.offset + i, d, row.length - i);
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
  const bool clamped = p.clamp >= 0;
  backward_rows<T>(p, begin, end, [&](const Row<T>& row, int64_t, int64_t i) {
    const int64_t at = row.offset + i, n = row.length - i;
    const Vec<T> z = preactivation(row, x + row.offset, i);
    Vec<T> cotangent = acc_t<T>(p.gain) * load_upto(u + at, n);
    if (clamped) cotangent = select(inside_clamp<T, A>(p, z), cotangent, Vec<T>{});
    const Vec<T> d = cotangent * load_upto(dy + at, n) * activation_second_derivative<A>(z);
    store_upto(grad_dy + at, cotangent * activation_derivative<A>(z), n);
    store_upto(grad_z + at, d, n);
    return d;
  });
}

template <class T>
void reduce(const BiasActParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = chunk_count(p);
  if (begin == 0 && p.dstrength) {
    double total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += p.strength_partials[chunk];
    store_scalar(static_cast<T*>(p.dstrength), acc_t<T>(total));
  }
  for (int64_t channel = begin; p.dbias && channel < end; ++channel) {
    double total = 0;
    if (p.vec_is_bias) {
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t period = 0; period < p.row_length; period += p.channels * p.inner)
          for (int64_t i = 0; i < p.inner; ++i)
            total += p.bias_partials[chunk * p.row_length + period + channel * p.inner + i];
    } else {
      for (int64_t row = channel; row < p.rows; row += p.channels) total += p.bias_partials[row];
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
      if constexpr (is_piecewise_linear(A))
        masked_backward<T, A>(p, begin, end);
      else
        smooth_backward<T, A>(p, begin, end);
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
