#include "core/scratch.h"
#include "core/simd.h"
#include "vector_quantize/vector_quantize_formula.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

// As many scores as there are registers, less those for the factors.
constexpr int kRows = 6, kVectors = AIGC_VECTOR_BYTES == 64 ? 4 : 2;
static_assert(kRowBlock % kRows == 0);
template <class T>
constexpr int64_t kStripCodes = kVectors * kWidth<T>;

// Where a row starts, and the rows from it on that lie beside it.
struct Place {
  int64_t first, adjacent;
};
inline Place place_of(const VectorQuantizeParams& p, int64_t row) {
  const int64_t outer = row / p.inner, i = row - outer * p.inner;
  return {outer * p.depth * p.inner + i, p.inner - i};
}

template <class T>
constexpr acc_t<T> kNaN = acc_t<T>(__builtin_nan(""));

// Writes the code of each row's index.
template <class T>
void write_codes(const VectorQuantizeParams& p, const Range& rows, const int64_t* indices) {
  const auto* codes = static_cast<const T*>(p.codes);
  auto* y = static_cast<T*>(p.y);
  T nan;
  store_scalar(&nan, kNaN<T>);
  for (int64_t row = rows.begin; row < rows.end;) {
    const Place place = place_of(p, row);
    const int64_t count = min(place.adjacent, rows.end - row);
    const int64_t* of = indices + row - rows.begin;
    const auto known = [&](int64_t i) { return of[i] >= 0 && of[i] < p.num_codes; };
    T* to = y + place.first;
    if (p.inner == 1) {
      for (int64_t d = 0; d < p.depth; ++d) to[d] = known(0) ? codes[of[0] * p.depth + d] : nan;
    } else {  // along the planes: their distance may be one at which cache lines displace each other
      for (int64_t d = 0; d < p.depth; ++d)
        for (int64_t i = 0; i < count; ++i) to[d * p.inner + i] = known(i) ? codes[of[i] * p.depth + d] : nan;
    }
    row += count;
  }
}

// ---- the nearest code -------------------------------------------------------------------------------------

// Calls f(r, v, scores) for kRows rows and kVectors vectors of codes, a strip of the panel.
template <class S, class F>
inline void strip_scores(const S* x, const S* strip, const S* negative_half_norms, int64_t depth, F&& f) {
  constexpr int W = kWidth<S>;
  Vec<S> sums[kRows][kVectors];
#pragma GCC unroll 8
  for (int v = 0; v < kVectors; ++v) {
    const Vec<S> start = load(negative_half_norms + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sums[r][v] = start;
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec<S> code[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) code[v] = load(strip + d * kVectors * W + v * W);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const S number = x[r * depth + d];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] += number * code[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) f(r, v, sums[r][v]);
}

template <class T>
class Nearest {
  using S = acc_t<T>;
  using Number = std::conditional_t<sizeof(S) == 4, int32_t, int64_t>;  // a lane of Mask<S>
  static constexpr int W = kWidth<T>;

 public:
  explicit Nearest(const VectorQuantizeParams& p)
      : p_(p),
        panel_(static_cast<const S*>(p.panel)),
        norms_(static_cast<const S*>(p.negative_half_norms)),
        strips_(code_groups(p) * kGroup / kStripCodes<T>),
        x_(kRowBlock * p.depth),
        best_(kRowBlock * W),
        second_(kRowBlock * W),
        vector_(kRowBlock * W) {
    for (int64_t k = 0; k < p.num_codes && first_nan_ < 0; ++k)
      if (norms_[k] != norms_[k]) first_nan_ = k;
    for (int64_t k = 0; k < p.num_codes; ++k)
      if (norms_[k] < most_negative_) most_negative_ = norms_[k];
  }

  void block(int64_t item) {
    const Range rows = part_of(rows_of(p_), kRowBlock, item);
    gather(rows);
    if (first_nan_ < 0) search(rows.size());
    int64_t found[kRowBlock];
    int64_t near[kRowBlock], near_count = 0;
    for (int64_t r = 0; r < rows.size(); ++r) {
      S square;
      if (!square_of(r, square)) {
        found[r] = -1;
      } else if (first_nan_ >= 0) {
        found[r] = first_nan_;
      } else {
        margin_[r] = score_margin(square, most_negative_, p_.depth);
        if (!decided(r, found[r])) near[near_count++] = r;
      }
    }
    for (int64_t i = 0; i < near_count; i += kRows)
      compare_again(near + i, min(near_count - i, kRows), found);
    for (int64_t r = 0; r < rows.size(); ++r) p_.nearest[rows.begin + r] = found[r];
    write_codes<T>(p_, rows, found);
  }

 private:
  // The rows, each of them dense, and zeros for those that the last block lacks.
  void gather(const Range& rows) {
    const auto* x = static_cast<const T*>(p_.x);
    const int64_t depth = p_.depth;
    for (int64_t row = rows.begin; row < rows.end;) {
      const Place place = place_of(p_, row);
      const int64_t count = min(place.adjacent, rows.end - row);
      S* to = &x_[(row - rows.begin) * depth];
      if (p_.inner == 1) {
        for_vectors<T>(0, depth, [&](int64_t d, auto whole) {
          store_lanes(to + d, load_lanes(x + place.first + d, depth - d, whole), depth - d, whole);
        });
      } else {
        for (int64_t d = 0; d < depth; ++d)
          for_vectors<T>(0, count, [&](int64_t i, auto whole) {
            S lanes[W];
            store(lanes, load_lanes(x + place.first + d * p_.inner + i, count - i, whole));
            for (int64_t j = 0; j < min(count - i, int64_t(W)); ++j) to[(i + j) * depth + d] = lanes[j];
          });
      }
      row += count;
    }
    for (int64_t i = rows.size() * depth; i < kRowBlock * depth; ++i) x_[i] = 0;
  }

  // Each lane's best score and its second best, over all codes.
  void search(int64_t rows) {
    const Vec<S> none = broadcast<Vec<S>>(-S(__builtin_inf()));
    for (int64_t r = 0; r < kRowBlock; ++r) {
      store(&best_[r * W], none);
      store(&second_[r * W], none);
      for (int i = 0; i < W; ++i) vector_[r * W + i] = 0;
    }
    for (int64_t strip = 0; strip < strips_; ++strip) {
      for (int64_t row = 0; row < rows; row += kRows) {
        strip_scores(&x_[row * p_.depth], strip_at(strip), norms_ + strip * kStripCodes<T>, p_.depth,
                     [&](int r, int v, Vec<S> score) {
                       const int64_t at = (row + r) * W;
                       const Vec<S> best = load(&best_[at]), second = load(&second_[at]);
                       const auto number = load_bytes<Mask<S>>(&vector_[at]);
                       const auto better = score > best;
                       const Vec<S> worse = better ? best : score;
                       store(&best_[at], better ? score : best);
                       store(&second_[at], worse > second ? worse : second);
                       const auto next = better ? Mask<S>{} + Number(strip * kVectors + v) : number;
                       std::memcpy(&vector_[at], &next, sizeof(next));
                     });
      }
    }
  }

  const S* strip_at(int64_t strip) const { return panel_ + strip * kStripCodes<T> * p_.depth; }

  // |x|^2; false if a number is not finite.
  bool square_of(int64_t r, S& square) const {
    Vec<S> sum{}, zeros{};
    const S* x = &x_[r * p_.depth];
    for_vectors<S>(0, p_.depth, [&](int64_t d, auto whole) {
      const Vec<S> numbers = load_lanes(x + d, p_.depth - d, whole);
      sum += numbers * numbers;
      zeros += numbers * S(0);
    });
    square = horizontal_sum(sum);
    return horizontal_sum(zeros) == 0;
  }

  // The code with the best score, unless another is too near to it.
  bool decided(int64_t r, int64_t& code) {
    const S *best = &best_[r * W], *second = &second_[r * W];
    int lane = 0;
    for (int i = 1; i < W; ++i)
      if (best[i] > best[lane]) lane = i;
    S next = second[lane];
    for (int i = 0; i < W; ++i)
      if (i != lane && best[i] > next) next = best[i];
    code = int64_t(vector_[r * W + lane]) * W + lane;
    // Of what float64 compares again, the scores from `limit_` on.
    const bool is_finite = margin_[r] < S(__builtin_inf());
    limit_[r] = is_finite ? best[lane] - margin_[r] : -S(__builtin_inf());
    return is_finite && next < limit_[r];
  }

  void compare_again(const int64_t* rows, int64_t count, int64_t* found) {
    const int64_t depth = p_.depth, width = strips_ * kStripCodes<T>;
    if (scores_.get() == nullptr) {
      some_.allocate(kRows * depth);
      code_.allocate(depth);
      scores_.allocate(kRows * width);
    }
    for (int64_t r = 0; r < count; ++r)
      std::memcpy(some_.get() + r * depth, &x_[rows[r] * depth], size_t(depth) * sizeof(S));
    for (int64_t strip = 0; strip < strips_; ++strip)
      strip_scores(some_.get(), strip_at(strip), norms_ + strip * kStripCodes<T>, depth,
                   [&](int r, int v, Vec<S> score) {
                     store(&scores_[r * width + strip * kStripCodes<T> + v * W], score);
                   });
    const auto* codes = static_cast<const T*>(p_.codes);
    for (int64_t r = 0; r < count; ++r) {
      double least = __builtin_inf();
      int64_t nearest = 0;
      const S limit = limit_[rows[r]];
      for (int64_t first = 0; first < width; first += W) {
        const auto below = load(&scores_[r * width + first]) < limit;  // not NaN
        for (uint32_t bits = mask_to_bits(below == 0); bits != 0; bits &= bits - 1) {
          const int64_t k = first + __builtin_ctz(bits);
          if (k >= p_.num_codes) break;
          for_vectors<T>(0, depth, [&](int64_t d, auto whole) {
            store_lanes(&code_[d], load_lanes(codes + k * depth + d, depth - d, whole), depth - d, whole);
          });
          double distance = 0;
          for (int64_t d = 0; d < depth; ++d) {
            const double difference = double(some_[r * depth + d]) - double(code_[d]);
            distance += difference * difference;
          }
          if (distance < least) least = distance, nearest = k;
        }
      }
      found[rows[r]] = nearest;
    }
  }

  const VectorQuantizeParams& p_;
  const S *panel_, *norms_;
  int64_t strips_, first_nan_ = -1;
  S most_negative_ = 0;  // of the negative half norms
  Scratch<S> x_, best_, second_;
  Scratch<Number> vector_;  // the number of the vector of codes that best_ is from
  S margin_[kRowBlock], limit_[kRowBlock];
  Scratch<S> some_, code_, scores_;
};

template <class T>
void prepare(const VectorQuantizeParams& p, int64_t group) {
  using S = acc_t<T>;
  constexpr int64_t width = kStripCodes<T>;
  const auto* codes = static_cast<const T*>(p.codes);
  auto* panel = static_cast<S*>(p.panel);
  auto* norms = static_cast<S*>(p.negative_half_norms);
  for (int64_t k = group * kGroup; k < (group + 1) * kGroup; ++k) {
    const T* code = codes + k * p.depth;
    S* column = panel + k / width * width * p.depth + k % width;
    double squares[4] = {};  // a single sum would wait for itself
    if (k < p.num_codes)
      for_vectors<T>(0, p.depth, [&](int64_t d, auto whole) {
        constexpr int W = kWidth<T>;
        S lanes[W];
        store(lanes, load_lanes(code + d, p.depth - d, whole));
        for (int j = 0; j < W; ++j) squares[j % 4] += double(lanes[j]) * double(lanes[j]);
        for (int64_t j = 0; j < min(p.depth - d, int64_t(W)); ++j) column[(d + j) * width] = lanes[j];
      });
    else
      squares[0] = __builtin_inf();
    norms[k] = S(((squares[0] + squares[1]) + (squares[2] + squares[3])) / -2);
    if (!(norms[k] - norms[k] == 0))  // of which nothing may come into a sum
      for (int64_t d = 0; d < p.depth; ++d) column[d * width] = 0;
  }
}

// ---- sums -------------------------------------------------------------------------------------------------

// For each code, the sums of `columns` adjacent numbers of its rows, in the order of the rows.
template <class T>
void sum_columns(const VectorQuantizeParams& p, int64_t item, double* sums) {
  constexpr int W = kWidth<T>;
  const auto* x = static_cast<const T*>(p.x);
  auto* result = static_cast<T*>(p.sums);
  const Range columns = part_of(p.depth, p.inner == 1 ? kColumnBlock : 1, item);
  const int64_t width = columns.size();
  for (int64_t i = 0; i < p.num_codes * width; ++i) sums[i] = 0;
  acc_t<T> lanes[kColumnBlock];
  static_assert(kColumnBlock % W == 0);
  if (p.inner == 1) {
    for (int64_t row = 0; row < p.outer; ++row) {
      const int64_t k = p.indices[row];
      if (k < 0 || k >= p.num_codes) continue;
      const T* from = x + row * p.depth + columns.begin;
      for_vectors<T>(
          0, width, [&](int64_t i, auto whole) { store(lanes + i, load_lanes(from + i, width - i, whole)); });
      double* to = sums + k * width;
      for (int64_t i = 0; i < width; ++i) to[i] += lanes[i];
    }
  } else {
    for (int64_t outer = 0; outer < p.outer; ++outer) {
      const T* plane = x + (outer * p.depth + columns.begin) * p.inner;
      const int64_t* indices = p.indices + outer * p.inner;
      for_vectors<T>(0, p.inner, [&](int64_t i, auto whole) {
        store(lanes, load_lanes(plane + i, p.inner - i, whole));
        for (int64_t j = 0; j < min(p.inner - i, int64_t(W)); ++j) {
          const int64_t k = indices[i + j];
          if (k >= 0 && k < p.num_codes) sums[k] += lanes[j];
        }
      });
    }
  }
  for (int64_t k = 0; k < p.num_codes; ++k)
    for (int64_t i = 0; i < width; ++i)
      store_scalar(result + k * p.depth + columns.begin + i, acc_t<T>(sums[k * width + i]));
}

}  // namespace

void vector_quantize_prepare(const VectorQuantizeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t group = begin; group < end; ++group) prepare<T>(p, group);
  });
}

void vector_quantize(const VectorQuantizeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    Nearest<T> nearest(p);
    for (int64_t item = begin; item < end; ++item) nearest.block(item);
  });
}

void code_rows(const VectorQuantizeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    for (int64_t item = begin; item < end; ++item) {
      const Range rows = part_of(rows_of(p), kRowBlock, item);
      write_codes<T>(p, rows, p.indices + rows.begin);
    }
  });
}

void code_sums(const VectorQuantizeParams& p, int64_t begin, int64_t end) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    Scratch<double> sums(p.num_codes * (p.inner == 1 ? min(p.depth, kColumnBlock) : 1));
    for (int64_t item = begin; item < end; ++item) sum_columns<T>(p, item, sums.get());
  });
}

}  // namespace AIGC_ISA
}  // namespace aigc
