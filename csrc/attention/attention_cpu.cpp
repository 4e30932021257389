// A block of queries after the other: its scores with all keys, in strips of kStrip keys, are products of two
// matrices of the block and of the head; what a row needs of all keys (its maximum, its sums) is known after
// one pass over the strips, and a second pass makes and uses the matrices that are factors of the results.
//
// Rows are gathered into dense matrices of acc_t first, padded with zeros to whole vectors, whatever the
// strides; keys that are padding are left out.
#include "attention/attention.h"

#include <limits>

#include "core/math.h"
#include "core/matmul.h"
#include "core/scratch.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

constexpr int64_t kRows = AttentionParams::kRows;

// ---- matrices -------------------------------------------------------------------------------------------

// Rows of a head's matrix, times a factor, to dense rows of `stride` elements. `index` numbers them anew, or is
// null.
template <class S>
void gather(const AttentionParams& p, const AttentionInput& from, int64_t head, const int64_t* index,
            Range rows, int64_t columns, S factor, S* to, int64_t stride) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    if constexpr (std::is_same_v<acc_t<T>, S>) {
      constexpr int W = kWidth<S>;
      const T* data =
          static_cast<const T*>(from.data) + head / p.heads * from.batch + head % p.heads * from.head;
      const int64_t count = rows.size();
      if (from.column == 1) {
        for (int64_t r = 0; r < count; ++r) {
          const T* row = data + (index ? index[rows.begin + r] : rows.begin + r) * from.row;
          for_vectors<S>(0, columns, [&](int64_t c, auto whole) {
            store(to + r * stride + c, load_lanes(row + c, columns - c, whole) * factor);
          });
        }
      } else if (from.row == 1 && !index) {
        for (int64_t c = 0; c < columns; c += W)
          for (int64_t r = 0; r < count; r += W) {
            Vec<S> block[W] = {};
            const int64_t wide = min(int64_t(W), columns - c);
            for (int i = 0; i < wide; ++i)
              block[i] = load_upto(data + (c + i) * from.column + rows.begin + r, count - r) * factor;
            transpose(block);
            const int64_t high = min(int64_t(W), count - r);
            for (int i = 0; i < high; ++i) store(to + (r + i) * stride + c, block[i]);
          }
      } else {
        for (int64_t r = 0; r < count; ++r) {
          const T* row = data + (index ? index[rows.begin + r] : rows.begin + r) * from.row;
          for (int64_t c = 0; c < columns; ++c)
            to[r * stride + c] = load_scalar(row + c * from.column) * factor;
        }
      }
    }
  });
}

// The opposite, for a matrix of storage type T.
template <class T, class S>
void scatter_as(T* data, int64_t row_stride, int64_t column_stride, const int64_t* index, Range rows,
                int64_t columns, S factor, const S* from, int64_t stride) {
  constexpr int W = kWidth<S>;
  const int64_t count = rows.size();
  if (column_stride == 1) {
    for (int64_t r = 0; r < count; ++r) {
      T* row = data + (index ? index[rows.begin + r] : rows.begin + r) * row_stride;
      for_vectors<S>(0, columns, [&](int64_t c, auto whole) {
        store_lanes(row + c, load(from + r * stride + c) * factor, columns - c, whole);
      });
    }
  } else if (row_stride == 1 && !index) {
    for (int64_t r = 0; r < count; r += W)
      for (int64_t c = 0; c < columns; c += W) {
        Vec<S> block[W] = {};
        const int64_t high = min(int64_t(W), count - r), wide = min(int64_t(W), columns - c);
        for (int i = 0; i < high; ++i) block[i] = load(from + (r + i) * stride + c) * factor;
        transpose(block);
        for (int i = 0; i < wide; ++i)
          store_upto(data + (c + i) * column_stride + rows.begin + r, block[i], high);
      }
  } else {
    for (int64_t r = 0; r < count; ++r) {
      T* row = data + (index ? index[rows.begin + r] : rows.begin + r) * row_stride;
      for (int64_t c = 0; c < columns; ++c)
        store_scalar(row + c * column_stride, from[r * stride + c] * factor);
    }
  }
}

template <class S>
void scatter(const AttentionParams& p, const AttentionOutput& to, int64_t head, const int64_t* index,
             Range rows, int64_t columns, S factor, const S* from, int64_t stride) {
  dispatch_dtype(p.dtype, [&]<class T>(T*) {
    if constexpr (std::is_same_v<acc_t<T>, S>)
      scatter_as(static_cast<T*>(to.data) + head / p.heads * to.batch + head % p.heads * to.head, to.row,
                 to.column, index, rows, columns, factor, from, stride);
  });
}

// C = A B, or C += A B: m rows of n columns, n whole vectors.
template <class S>
void multiply(int64_t m, int64_t n, int64_t k, const S* a, int64_t a_row, int64_t a_column, const S* b,
              int64_t b_row, S* c, bool adds) {
  Product<S> product;
  product.m = m, product.n = n, product.k = k;
  product.a = a, product.a_row = a_row, product.a_column = a_column;
  product.b = b, product.b_stride = b_row;
  product.c = c;
  product.adds = adds;
  product_strips(product, {0, ceil_div(n, kStrip)});
}

// ---- a head ---------------------------------------------------------------------------------------------

// The keys of a sample that are not padding.
class Keys {
 public:
  explicit Keys(const AttentionParams& p) : p_(p), count_(p.keys) {
    if (p.padding) index_.allocate(p.keys);
  }

  void select(int64_t sample) {
    if (!p_.padding) return;
    count_ = 0;
    for (int64_t j = 0; j < p_.keys; ++j)
      if (!p_.padding[sample * p_.keys + j]) index_[count_++] = j;
  }
  int64_t count() const { return count_; }
  const int64_t* index() const { return p_.padding ? index_.get() : nullptr; }
  // How many of them query i attends to.
  int64_t limit(int64_t i) const {
    if (!p_.causal) return count_;
    if (!p_.padding) return min(i + 1, count_);
    int64_t low = 0, high = count_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (index_[middle] <= i)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

 private:
  const AttentionParams& p_;
  int64_t count_;
  Scratch<int64_t> index_;
};

// Strips of keys: f(first, n, width), where `width` is n rounded up to whole vectors.
template <class S, class F>
void for_strips(int64_t count, F&& f) {
  for (int64_t first = 0; first < count; first += kStrip) {
    const int64_t n = min(kStrip, count - first);
    f(first, n, round_up(n, kWidth<S>));
  }
}

// A matrix with a row for each key, and its transpose in strips: the right factors of products.
template <class S>
struct KeyMatrix {
  int64_t columns, stride;
  Scratch<S> rows, strips;

  KeyMatrix(const AttentionParams& p, int64_t columns)
      : columns(columns),
        stride(round_up(columns, kWidth<S>)),
        rows(round_up(p.keys, kStrip) * stride),
        strips(round_up(p.keys, kStrip) * stride) {}

  void load_head(const AttentionParams& p, const AttentionInput& from, int64_t head, const Keys& keys) {
    gather(p, from, head, keys.index(), {0, keys.count()}, columns, S(1), rows.get(), stride);
    Product<S> source;
    source.k = stride;
    source.b = rows.get(), source.b_stride = stride, source.b_by_columns = true;
    for (int64_t j = 0; j < keys.count(); j += kStrip)
      pack(source, j, min(kStrip, keys.count() - j), kStrip, {0, source.k}, &strips[j * stride]);
  }

  // C(i, j) = A(i, .) . row j, for the keys of a strip.
  void scores(const S* a, int64_t m, int64_t first, int64_t width, S* c, bool adds = false) const {
    multiply(m, width, columns, a, stride, 1, &strips[first * stride], kStrip, c, adds);
  }
  // C(i, .) += sum over the strip's keys of a(i, j) row j.
  void combine(const S* a, int64_t m, int64_t first, int64_t n, int64_t width, S* c) const {
    multiply(m, stride, n, a, width, 1, &rows[first * stride], stride, c, true);
  }
};

// C(j, .) += sum over i of a(i, j) b(i, .), for the keys of a strip.
template <class S>
void combine_queries(const S* a, int64_t n, int64_t width, int64_t m, const S* b, int64_t stride, S* c) {
  multiply(n, stride, m, a, 1, width, b, stride, c, true);
}

template <class S>
S dot(const S* a, const S* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += double(a[i]) * double(b[i]);
  return S(sum);
}

// ---- a block of queries ---------------------------------------------------------------------------------

// Sums over the keys of each row of a block: kSumBlock additions in S, the rest in float64.
template <class S>
class RowSums {
 public:
  RowSums() : lanes_(kRows * kWidth<S>), totals_(kRows) {}
  void begin() {
    for (int64_t i = 0; i < kRows * kWidth<S>; ++i) lanes_[i] = 0;
    for (int64_t r = 0; r < kRows; ++r) totals_[r] = 0;
    added_ = 0;
  }
  Vec<S> lanes(int64_t row) const { return load(&lanes_[row * kWidth<S>]); }
  void set_lanes(int64_t row, Vec<S> lanes) { store(&lanes_[row * kWidth<S>], lanes); }
  void end_strip() {
    added_ += kStrip / kWidth<S>;
    if (added_ >= kSumBlock) end();
  }
  void end() {
    for (int64_t r = 0; r < kRows; ++r) {
      totals_[r] += horizontal_sum(lanes(r));
      set_lanes(r, Vec<S>{});
    }
    added_ = 0;
  }
  double operator[](int64_t row) const { return totals_[row]; }

 private:
  Scratch<S> lanes_;
  Scratch<double> totals_;
  int64_t added_ = 0;
};

template <class S>
struct Block {
  Range queries{0, 0};
  Scratch<int64_t> limits{kRows};
  int64_t most = 0;  // of the limits

  void begin(const AttentionParams& p, const Keys& keys, int64_t index) {
    queries = part_of(p.queries, kRows, index);
    most = 0;
    for (int64_t r = 0; r < queries.size(); ++r) {
      limits[r] = keys.limit(queries.begin + r);
      most = max(most, limits[r]);
    }
  }
  int64_t rows() const { return queries.size(); }

  // f(row, x, mask) for each vector of a strip's scores, after start(row), and before end(row).
  // mask(v, other) is v for the keys that the row attends to.
  template <class F, class G, class H>
  void for_scores(int64_t first, int64_t width, G&& start, F&& f, H&& end) const {
    constexpr int W = kWidth<S>;
    S numbers[W];
    for (int i = 0; i < W; ++i) numbers[i] = S(i);
    const Vec<S> lanes = load(numbers);
    for (int64_t r = 0; r < rows(); ++r) {
      const int64_t limit = limits[r] - first;
      start(r);
      if (limit >= width) {
        for (int64_t x = 0; x < width; x += W) f(r, x, [](Vec<S> v, S) { return v; });
      } else {
        const S last = S(max(limit, int64_t(0)));
        for (int64_t x = 0; x < width; x += W)
          f(r, x,
            [&](Vec<S> v, S other) { return select(lanes + S(x) < last, v, broadcast<Vec<S>>(other)); });
      }
      end(r);
    }
  }
};

template <class S>
void clear(const Scratch<S>& values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0;
}

// ---- forward --------------------------------------------------------------------------------------------

// b |k_j|^2
template <class S>
void set_key_scores(const AttentionParams& p, const KeyMatrix<S>& k, int64_t count, S* scores) {
  for (int64_t j = 0; j < count; ++j)
    scores[j] = S(p.key_scale) * dot(&k.rows[j * k.stride], &k.rows[j * k.stride], k.columns);
}

template <class S, bool kDistance>
void forward(const AttentionParams& p, int64_t begin, int64_t end) {
  constexpr int W = kWidth<S>;
  constexpr S infinity = std::numeric_limits<S>::infinity();
  const int64_t blocks = ceil_div(p.queries, kRows);
  Keys keys(p);
  KeyMatrix<S> k(p, p.width), v(p, p.value_width);
  Block<S> block;
  Scratch<S> q(kRows * k.stride), o(kRows * v.stride), scores(kRows * round_up(p.keys, kStrip)),
      largest(kRows * W), key_scores(round_up(p.keys, kStrip));
  RowSums<S> sums;
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item / blocks;
    if (head != loaded) {
      keys.select(head / p.heads);
      k.load_head(p, p.k, head, keys);
      v.load_head(p, p.v, head, keys);
      if (kDistance) set_key_scores(p, k, keys.count(), key_scores.get());
      loaded = head;
    }
    block.begin(p, keys, item % blocks);
    const int64_t m = block.rows();
    gather(p, p.q, head, nullptr, block.queries, p.width, S(p.scale), q.get(), k.stride);
    for (int64_t i = 0; i < kRows * W; ++i) largest[i] = -infinity;
    for_strips<S>(block.most, [&](int64_t first, int64_t, int64_t width) {
      S* s = &scores[first * kRows];
      k.scores(q.get(), m, first, width, s);
      Vec<S> most;
      block.for_scores(
          first, width, [&](int64_t r) { most = load(&largest[r * W]); },
          [&](int64_t r, int64_t x, auto mask) {
            Vec<S> score = load(s + r * width + x);
            if constexpr (kDistance) {
              score += load(&key_scores[first + x]);
              store(s + r * width + x, score);
            }
            most = max(most, mask(score, -infinity));
          },
          [&](int64_t r) { store(&largest[r * W], most); });
    });
    for (int64_t r = 0; r < m; ++r) {
      S most = largest[r * W];
      for (int i = 1; i < W; ++i) most = max(most, largest[r * W + i]);
      largest[r * W] = most;
    }
    sums.begin();
    clear(o, kRows * v.stride);
    for_strips<S>(block.most, [&](int64_t first, int64_t n, int64_t width) {
      S* s = &scores[first * kRows];
      Vec<S> sum, most;
      block.for_scores(
          first, width,
          [&](int64_t r) {
            sum = sums.lanes(r);
            most = broadcast<Vec<S>>(largest[r * W]);
          },
          [&](int64_t r, int64_t x, auto mask) {
            const Vec<S> e = mask(exp(load(s + r * width + x) - most), S(0));
            store(s + r * width + x, e);
            sum += e;
          },
          [&](int64_t r) { sums.set_lanes(r, sum); });
      sums.end_strip();
      v.combine(s, m, first, n, width, o.get());
    });
    sums.end();
    S* lse = static_cast<S*>(p.lse) + head * p.queries + block.queries.begin;
    for (int64_t r = 0; r < m; ++r) {
      const bool any = block.limits[r] > 0;
      lse[r] = any ? S(double(largest[r * W]) + ::log(sums[r])) : -infinity;
      const S factor = any ? S(1 / sums[r]) : S(0);
      for (int64_t c = 0; c < v.stride; ++c) o[r * v.stride + c] *= factor;
    }
    scatter(p, p.o, head, nullptr, block.queries, p.value_width, S(1), o.get(), v.stride);
  }
}

// ---- backward -------------------------------------------------------------------------------------------

// Sums over the queries for each key, of a block at a time in S, and of all blocks in float64.
template <class S>
class KeySums {
 public:
  explicit KeySums(const AttentionParams& p) : totals_(round_up(p.keys, kStrip)), lanes_(kStrip) {}
  void begin(int64_t count) { clear(totals_, round_up(count, kStrip)); }
  void add(int64_t x, Vec<S> terms) { store(&lanes_[x], load(&lanes_[x]) + terms); }
  void end_strip(int64_t first, int64_t width) {
    for (int64_t x = 0; x < width; ++x) {
      totals_[first + x] += lanes_[x];
      lanes_[x] = 0;
    }
  }
  S operator[](int64_t key) const { return S(totals_[key]); }

 private:
  Scratch<double> totals_;
  Scratch<S> lanes_;
};

// The queries of a part of a head, in blocks.
inline Range blocks_of(const AttentionBackwardParams& p, int64_t part) {
  const int64_t blocks = ceil_div(p.queries, kRows);
  const Range range = part_of(blocks, ceil_div(blocks, p.parts), part);
  return {min(range.begin, blocks), max(range.end, min(range.begin, blocks))};
}

// Results with a row for each key, zeros for padding: the gradient itself, or an item's share in it.
template <class S>
void put_keys(const AttentionBackwardParams& p, int64_t item, const AttentionOutput& to, int64_t first_column,
              const Keys& keys, int64_t columns, const S* from, int64_t stride) {
  const int64_t head = item / p.parts, share_width = p.width + p.value_width;
  const Range rows{0, keys.count()};
  S* share = p.shares ? static_cast<S*>(p.shares) + item * p.keys * share_width + first_column : nullptr;
  if (p.padding) {
    Scratch<S> zeros(round_up(columns, kWidth<S>));
    for (int64_t j = 0; j < p.keys; ++j) {
      if (!p.padding[head / p.heads * p.keys + j]) continue;
      if (share)
        scatter_as(share, share_width, 1, nullptr, {j, j + 1}, columns, S(1), zeros.get(), 0);
      else
        scatter(p, to, head, &j, {0, 1}, columns, S(1), zeros.get(), 0);
    }
  }
  if (share)
    scatter_as(share, share_width, 1, keys.index(), rows, columns, S(1), from, stride);
  else
    scatter(p, to, head, keys.index(), rows, columns, S(1), from, stride);
}

template <class S, bool kDistance>
void backward(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  Keys keys(p);
  KeyMatrix<S> k(p, p.width), v(p, p.value_width);
  Block<S> block;
  const int64_t room = round_up(p.keys, kStrip);
  Scratch<S> q(kRows * k.stride), grad_o(kRows * v.stride), grad_q(kRows * k.stride), ps(kRows * room),
      ds(kRows * room), grad_k(room * k.stride), grad_v(room * v.stride), key_scores(room);
  RowSums<S> deltas;
  KeySums<S> of_keys(p);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item / p.parts;
    if (head != loaded) {
      keys.select(head / p.heads);
      k.load_head(p, p.k, head, keys);
      v.load_head(p, p.v, head, keys);
      if (kDistance) set_key_scores(p, k, keys.count(), key_scores.get());
      loaded = head;
    }
    clear(grad_k, keys.count() * k.stride);
    clear(grad_v, keys.count() * v.stride);
    of_keys.begin(keys.count());
    const Range blocks = blocks_of(p, item % p.parts);
    for (int64_t at = blocks.begin; at < blocks.end; ++at) {
      block.begin(p, keys, at);
      const int64_t m = block.rows();
      const S* lse = static_cast<const S*>(p.lse) + head * p.queries + block.queries.begin;
      gather(p, p.q, head, nullptr, block.queries, p.width, S(p.scale), q.get(), k.stride);
      gather(p, p.grad_o, head, nullptr, block.queries, p.value_width, S(1), grad_o.get(), v.stride);
      deltas.begin();
      for_strips<S>(block.most, [&](int64_t first, int64_t, int64_t width) {
        S *s = &ps[first * kRows], *t = &ds[first * kRows];
        k.scores(q.get(), m, first, width, s);
        v.scores(grad_o.get(), m, first, width, t);
        Vec<S> sum, shift;
        block.for_scores(
            first, width,
            [&](int64_t r) {
              sum = deltas.lanes(r);
              shift = broadcast<Vec<S>>(lse[r]);
            },
            [&](int64_t r, int64_t x, auto mask) {
              Vec<S> score = load(s + r * width + x);
              if constexpr (kDistance) score += load(&key_scores[first + x]);
              const Vec<S> e = mask(exp(score - shift), S(0));
              store(s + r * width + x, e);
              sum += mask(e * load(t + r * width + x), S(0));
            },
            [&](int64_t r) { deltas.set_lanes(r, sum); });
        deltas.end_strip();
      });
      deltas.end();
      clear(grad_q, kRows * k.stride);
      for_strips<S>(block.most, [&](int64_t first, int64_t n, int64_t width) {
        S *s = &ps[first * kRows], *t = &ds[first * kRows];
        Vec<S> delta;
        block.for_scores(
            first, width, [&](int64_t r) { delta = broadcast<Vec<S>>(S(deltas[r])); },
            [&](int64_t r, int64_t x, auto mask) {
              const int64_t i = r * width + x;
              const Vec<S> d = mask(load(s + i) * (load(t + i) - delta), S(0));
              store(t + i, d);
              if constexpr (kDistance) of_keys.add(x, d);
            },
            [](int64_t) {});
        if (kDistance) of_keys.end_strip(first, width);
        k.combine(t, m, first, n, width, grad_q.get());
        combine_queries(t, n, width, m, q.get(), k.stride, &grad_k[first * k.stride]);
        combine_queries(s, n, width, m, grad_o.get(), v.stride, &grad_v[first * v.stride]);
      });
      scatter(p, p.grad_q, head, nullptr, block.queries, p.width, S(p.scale), grad_q.get(), k.stride);
    }
    if (kDistance)
      for (int64_t j = 0; j < keys.count(); ++j) {
        const S factor = S(2 * p.key_scale) * of_keys[j];
        for (int64_t c = 0; c < p.width; ++c) grad_k[j * k.stride + c] += factor * k.rows[j * k.stride + c];
      }
    put_keys(p, item, p.grad_k, 0, keys, p.width, grad_k.get(), k.stride);
    put_keys(p, item, p.grad_v, p.width, keys, p.value_width, grad_v.get(), v.stride);
  }
}

// The sums of the parts' shares.
template <class S>
void join(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  const int64_t columns = p.width + p.value_width, stride = round_up(columns, kWidth<S>);
  Scratch<S> sums(kRows * stride + kWidth<S>);
  for (int64_t head = begin; head < end; ++head)
    for (int64_t first = 0; first < p.keys; first += kRows) {
      const Range rows{first, min(first + kRows, p.keys)};
      const S* share = static_cast<const S*>(p.shares) + (head * p.parts * p.keys + first) * columns;
      for (int64_t r = 0; r < rows.size(); ++r)
        for_vectors<S>(0, columns, [&](int64_t c, auto whole) {
          Vec<S> sum{};
          for (int64_t part = 0; part < p.parts; ++part)
            sum += load_lanes(share + (part * p.keys + r) * columns + c, columns - c, whole);
          store(&sums[r * stride + c], sum);
        });
      scatter(p, p.grad_k, head, nullptr, rows, p.width, S(1), sums.get(), stride);
      scatter(p, p.grad_v, head, nullptr, rows, p.value_width, S(1), &sums[p.width], stride);
    }
}

// ---- double backward ------------------------------------------------------------------------------------

template <class S, bool kDistance>
void double_backward(const AttentionDoubleBackwardParams& p, int64_t begin, int64_t end) {
  Keys keys(p);
  KeyMatrix<S> k(p, p.width), b(p, p.width), v(p, p.value_width), c(p, p.value_width);
  Block<S> block;
  const int64_t room = round_up(p.keys, kStrip), width_of_k = k.stride, width_of_v = v.stride;
  Scratch<S> q(kRows * width_of_k), a(kRows * width_of_k), grad_o(kRows * width_of_v),
      grad_q(kRows * width_of_k), grad_grad_o(kRows * width_of_v), grad_k(room * width_of_k),
      grad_v(room * width_of_v), key_scores(room), key_terms(room);
  Scratch<S> ps(kRows * room), ts(kRows * room), ds(kRows * room), us(kRows * room);
  RowSums<S> deltas, taus, products;
  KeySums<S> of_ds(p), of_h(p);
  int64_t loaded = -1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t head = item / p.parts;
    if (head != loaded) {
      keys.select(head / p.heads);
      k.load_head(p, p.k, head, keys);
      v.load_head(p, p.v, head, keys);
      if (p.b.data) b.load_head(p, p.b, head, keys);
      if (p.c.data) c.load_head(p, p.c, head, keys);
      if (kDistance) {
        set_key_scores(p, k, keys.count(), key_scores.get());
        for (int64_t j = 0; j < keys.count(); ++j)
          key_terms[j] =
              p.b.data ? S(2 * p.key_scale) * dot(&b.rows[j * width_of_k], &k.rows[j * width_of_k], p.width)
                       : S(0);
      }
      loaded = head;
    }
    clear(grad_k, keys.count() * width_of_k);
    clear(grad_v, keys.count() * width_of_v);
    of_ds.begin(keys.count());
    of_h.begin(keys.count());
    const Range blocks = blocks_of(p, item % p.parts);
    for (int64_t at = blocks.begin; at < blocks.end; ++at) {
      block.begin(p, keys, at);
      const int64_t m = block.rows();
      const S* lse = static_cast<const S*>(p.lse) + head * p.queries + block.queries.begin;
      gather(p, p.q, head, nullptr, block.queries, p.width, S(p.scale), q.get(), width_of_k);
      gather(p, p.grad_o, head, nullptr, block.queries, p.value_width, S(1), grad_o.get(), width_of_v);
      if (p.a.data) gather(p, p.a, head, nullptr, block.queries, p.width, S(p.scale), a.get(), width_of_k);
      deltas.begin();
      taus.begin();
      products.begin();
      for_strips<S>(block.most, [&](int64_t first, int64_t, int64_t width) {
        const int64_t start = first * kRows;
        k.scores(q.get(), m, first, width, &ps[start]);
        v.scores(grad_o.get(), m, first, width, &ds[start]);
        if (p.a.data) k.scores(a.get(), m, first, width, &ts[start]);
        if (p.b.data) b.scores(q.get(), m, first, width, &ts[start], p.a.data != nullptr);
        if (p.c.data) c.scores(grad_o.get(), m, first, width, &us[start]);
        Vec<S> delta, tau, product, shift;
        block.for_scores(
            first, width,
            [&](int64_t r) {
              delta = deltas.lanes(r), tau = taus.lanes(r), product = products.lanes(r);
              shift = broadcast<Vec<S>>(lse[r]);
            },
            [&](int64_t r, int64_t x, auto mask) {
              const int64_t i = start + r * width + x;
              Vec<S> score = load(&ps[i]), t = load(&ts[i]);
              if constexpr (kDistance) {
                score += load(&key_scores[first + x]);
                t += load(&key_terms[first + x]);
                store(&ts[i], t);
              }
              const Vec<S> e = mask(exp(score - shift), S(0)), d = load(&ds[i]);
              store(&ps[i], e);
              delta += mask(e * d, S(0));
              tau += mask(e * t, S(0));
              product += mask(e * (t * d + load(&us[i])), S(0));
            },
            [&](int64_t r) {
              deltas.set_lanes(r, delta), taus.set_lanes(r, tau), products.set_lanes(r, product);
            });
        deltas.end_strip(), taus.end_strip(), products.end_strip();
      });
      deltas.end(), taus.end(), products.end();
      clear(grad_q, kRows * width_of_k);
      clear(grad_grad_o, kRows * width_of_v);
      for_strips<S>(block.most, [&](int64_t first, int64_t n, int64_t width) {
        const int64_t start = first * kRows;
        Vec<S> delta, tau, gamma;
        block.for_scores(
            first, width,
            [&](int64_t r) {
              delta = broadcast<Vec<S>>(S(deltas[r]));
              tau = broadcast<Vec<S>>(S(taus[r]));
              gamma = broadcast<Vec<S>>(S(products[r] - deltas[r] * taus[r]));
            },
            [&](int64_t r, int64_t x, auto mask) {
              const int64_t i = start + r * width + x;
              const Vec<S> e = load(&ps[i]), t = load(&ts[i]) - tau, d = load(&ds[i]) - delta;
              const Vec<S> h = mask(e * (t * d + load(&us[i]) - gamma), S(0)), d_s = mask(e * d, S(0));
              store(&ts[i], mask(e * t, S(0)));
              store(&ds[i], d_s);
              store(&us[i], h);
              if constexpr (kDistance) {
                of_ds.add(x, d_s);
                of_h.add(x, h);
              }
            },
            [](int64_t) {});
        if (kDistance) {
          of_ds.end_strip(first, width);
          of_h.end_strip(first, width);
        }
        const S *e = &ts[start], *d_s = &ds[start], *h = &us[start];
        v.combine(e, m, first, n, width, grad_grad_o.get());
        combine_queries(e, n, width, m, grad_o.get(), width_of_v, &grad_v[first * width_of_v]);
        if (p.c.data) c.combine(&ps[start], m, first, n, width, grad_grad_o.get());
        k.combine(h, m, first, n, width, grad_q.get());
        combine_queries(h, n, width, m, q.get(), width_of_k, &grad_k[first * width_of_k]);
        if (p.b.data) b.combine(d_s, m, first, n, width, grad_q.get());
        if (p.a.data) combine_queries(d_s, n, width, m, a.get(), width_of_k, &grad_k[first * width_of_k]);
        // Where there is no product to set them anew:
        if (!p.a.data && !p.b.data)
          for (int64_t i = start; i < start + m * width; ++i) ts[i] = 0;
        if (!p.c.data)
          for (int64_t i = start; i < start + m * width; ++i) us[i] = 0;
      });
      scatter(p, p.grad_q, head, nullptr, block.queries, p.width, S(p.scale), grad_q.get(), width_of_k);
      scatter(p, p.grad_grad_o, head, nullptr, block.queries, p.value_width, S(1), grad_grad_o.get(),
              width_of_v);
    }
    if (kDistance)
      for (int64_t j = 0; j < keys.count(); ++j) {
        const S of_k = S(2 * p.key_scale) * of_h[j], of_b = S(2 * p.key_scale) * of_ds[j];
        for (int64_t x = 0; x < p.width; ++x) {
          const int64_t i = j * width_of_k + x;
          grad_k[i] += of_k * k.rows[i] + (p.b.data ? of_b * b.rows[i] : S(0));
        }
      }
    put_keys(p, item, p.grad_k, 0, keys, p.width, grad_k.get(), width_of_k);
    put_keys(p, item, p.grad_v, p.width, keys, p.value_width, grad_v.get(), width_of_v);
  }
}

// Calls f with a number of the type to compute in, and whether the scores are distances.
template <class F>
void dispatch(const AttentionParams& p, F&& f) {
  dispatch_acc(p.dtype, [&]<class S>(S*) {
    if (p.key_scale != 0)
      f(S(), std::true_type());
    else
      f(S(), std::false_type());
  });
}

}  // namespace

void attention_forward(const AttentionParams& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto s, auto distance) { forward<decltype(s), distance.value>(p, begin, end); });
}

void attention_backward(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto s, auto distance) { backward<decltype(s), distance.value>(p, begin, end); });
}

void attention_double_backward(const AttentionDoubleBackwardParams& p, int64_t begin, int64_t end) {
  dispatch(p, [&](auto s, auto distance) { double_backward<decltype(s), distance.value>(p, begin, end); });
}

void attention_join(const AttentionBackwardParams& p, int64_t begin, int64_t end) {
  dispatch_acc(p.dtype, [&]<class S>(S*) { join<S>(p, begin, end); });
}

}  // namespace AIGC_ISA
}  // namespace aigc
