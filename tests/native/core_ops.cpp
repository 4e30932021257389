// The operations, compiled once per instruction set. No templates of the standard library are used here: the
// linker could merge a function of two sets into the wrong one, which test_build.py checks.
#include <cstring>

#include "core/math.h"
#include "core/simd.h"

namespace aigc {
inline namespace AIGC_ISA {
namespace {

struct Arrays {
  const char* op;  // "<name>.<dtype>"
  const void* in;
  int64_t in_bytes;
  void* out;
  int64_t out_bytes;

  template <class T>
  const T* input() const {
    return static_cast<const T*>(in);
  }
  template <class T>
  int64_t input_size() const {
    return in_bytes / static_cast<int64_t>(sizeof(T));
  }
  template <class T>
  T* output() const {
    return static_cast<T*>(out);
  }
};

template <class T>
constexpr const char* kDTypeName = "float32";
template <>
constexpr const char* kDTypeName<double> = "float64";
template <>
constexpr const char* kDTypeName<half> = "float16";
template <>
constexpr const char* kDTypeName<bfloat16> = "bfloat16";

template <class T>
bool is_op(const Arrays& a, const char* name) {
  const size_t length = std::strlen(name);
  return std::strncmp(a.op, name, length) == 0 && a.op[length] == '.' &&
         std::strcmp(a.op + length + 1, kDTypeName<T>) == 0;
}

// out[i] = f(in[i]) as kernels compute it: f is compiled into the loop and once more into its tail.
template <class T, class F>
bool map_vectors(const Arrays& a, F f) {
  const T* in = a.input<T>();
  T* out = a.output<T>();
  const int64_t n = a.input_size<T>();
  for_vectors<T>(0, n, [=](int64_t i, auto whole) {
    store_lanes(out + i, f(load_lanes(in + i, n - i, whole)), n - i, whole);
  });
  return true;
}

template <class T, class F>
bool map_scalars(const Arrays& a, F f) {
  for (int64_t i = 0; i < a.input_size<T>(); ++i) a.output<T>()[i] = f(a.input<T>()[i]);
  return true;
}

// The same functor for vectors and scalars, as in activation.h.
template <class T>
bool run_function(const Arrays& a) {
#define FUNCTION(name)                                                              \
  if (is_op<T>(a, #name)) return map_vectors<T>(a, [](auto x) { return name(x); }); \
  if (is_op<T>(a, "scalar_" #name)) return map_scalars<T>(a, [](auto x) { return name(x); });
  FUNCTION(exp)
  FUNCTION(expm1)
  FUNCTION(log)
  FUNCTION(log1p)
  FUNCTION(sin)
  FUNCTION(cos)
  FUNCTION(tanh)
  FUNCTION(sigmoid)
  FUNCTION(softplus)
  FUNCTION(sqrt)
  FUNCTION(rsqrt)
  FUNCTION(abs)
#undef FUNCTION
  return false;
}

// Two or three arrays of n elements, one after another -> n elements; n is a multiple of the width.
template <class T>
bool run_comparison(const Arrays& a) {
  const T* in = a.input<T>();
  T* out = a.output<T>();
  const int64_t n = a.out_bytes / static_cast<int64_t>(sizeof(T));
  const bool is_max = is_op<T>(a, "max"), is_min = is_op<T>(a, "min"), is_clamp = is_op<T>(a, "clamp");
  const bool scalar_max = is_op<T>(a, "scalar_max"), scalar_min = is_op<T>(a, "scalar_min");
  const bool scalar_clamp = is_op<T>(a, "scalar_clamp");
  for (int64_t i = 0; i + kWidth<T> <= n; i += kWidth<T>) {
    if (is_max) store(out + i, max(load(in + i), load(in + n + i)));
    if (is_min) store(out + i, min(load(in + i), load(in + n + i)));
    if (is_clamp) store(out + i, clamp(load(in + i), load(in + n + i), load(in + 2 * n + i)));
  }
  for (int64_t i = 0; i < n; ++i) {
    if (scalar_max) out[i] = max(in[i], in[n + i]);
    if (scalar_min) out[i] = min(in[i], in[n + i]);
    if (scalar_clamp) out[i] = clamp(in[i], in[n + i], in[2 * n + i]);
  }
  return is_max || is_min || is_clamp || scalar_max || scalar_min || scalar_clamp;
}

template <class T>
bool run_load_store(const Arrays& a) {
  using A = acc_t<T>;
  constexpr int width = kWidth<T>;
  if (is_op<T>(a, "width")) {
    *a.output<int32_t>() = width;
  } else if (is_op<T>(a, "copy")) {
    map_vectors<T>(a, [](Vec<T> x) { return x; });
  } else if (is_op<T>(a, "widen")) {
    for (int64_t i = 0; i < a.input_size<T>(); i += width)
      store_upto(a.output<A>() + i, load_upto(a.input<T>() + i, a.input_size<T>() - i),
                 a.input_size<T>() - i);
  } else if (is_op<T>(a, "narrow")) {
    for (int64_t i = 0; i < a.input_size<A>(); i += width)
      store_upto(a.output<T>() + i, load_upto(a.input<A>() + i, a.input_size<A>() - i),
                 a.input_size<A>() - i);
  } else if (is_op<T>(a, "load_scalar")) {
    for (int64_t i = 0; i < a.input_size<T>(); ++i) a.output<A>()[i] = load_scalar(a.input<T>() + i);
  } else if (is_op<T>(a, "store_scalar")) {
    for (int64_t i = 0; i < a.input_size<A>(); ++i) store_scalar(a.output<T>() + i, a.input<A>()[i]);
  } else if (is_op<T>(a, "load_last")) {
    // width elements -> row n has the last n of them
    for (int n = 0; n < width; ++n) store(a.output<A>() + n * width, load(a.input<T>() + width - n, n));
  } else if (is_op<T>(a, "store_first")) {
    // width elements -> into row n, the first n of them
    for (int n = 0; n < width; ++n) store(a.output<T>() + n * width, load(a.input<A>()), n);
  } else {
    return false;
  }
  return true;
}

template <class T>
bool run_lanes(const Arrays& a) {
  using V = Vec<T>;
  constexpr int width = kWidth<T>;
  if (is_op<T>(a, "broadcast")) {
    for (int64_t i = 0; i < a.input_size<T>(); ++i)
      store(a.output<T>() + i * width, broadcast<V>(a.input<T>()[i]));
  } else if (is_op<T>(a, "horizontal_sum")) {
    for (int64_t i = 0; i < a.input_size<T>() / width; ++i)
      a.output<T>()[i] = horizontal_sum(load(a.input<T>() + i * width));
  } else if (is_op<T>(a, "negative_bits")) {
    for (int64_t i = 0; i < a.input_size<T>() / width; ++i)
      a.output<uint32_t>()[i] = mask_to_bits(load(a.input<T>() + i * width) < V{});
  } else if (is_op<T>(a, "mask")) {
    for (int64_t i = 0; i < a.input_size<uint32_t>(); ++i) {
      const Mask<T> mask = bits_to_mask<T>(a.input<uint32_t>()[i]);
      std::memcpy(a.output<T>() + i * width, &mask, sizeof(mask));
    }
  } else if (is_op<T>(a, "select")) {
    // n elements -> n elements: the negative ones are negated
    map_vectors<T>(a, [](V x) { return select(x < V{}, -x, x); });
  } else {
    return false;
  }
  return true;
}

}  // namespace

bool run_core_op(const char* op, const void* in, int64_t in_bytes, void* out, int64_t out_bytes) {
  const Arrays a{op, in, in_bytes, out, out_bytes};
  return run_function<float>(a) || run_function<double>(a) || run_comparison<float>(a) ||
         run_comparison<double>(a) || run_lanes<float>(a) || run_lanes<double>(a) ||
         run_load_store<float>(a) || run_load_store<double>(a) || run_load_store<half>(a) ||
         run_load_store<bfloat16>(a);
}

}  // namespace AIGC_ISA
}  // namespace aigc
