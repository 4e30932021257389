// What every op's glue needs: checks that name the argument, and memory layouts.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/numeric.h"
#include "glue/errors.h"

namespace aigc {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

// The text of a `str` argument, which the op owns. An op that takes a std::string leaks memory: the copy that
// torch's conversion makes (2.10 to 2.13) is never freed.
inline std::string take_string(StringHandle handle) {
  const char* data = nullptr;
  size_t length = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
  STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
  std::string text(data, length);
  STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
  return text;
}

inline std::string shape(Sizes sizes) {
  std::ostringstream out;
  out << '[';
  for (size_t d = 0; d < sizes.size(); ++d) out << (d ? ", " : "") << sizes[d];
  out << ']';
  return out.str();
}
inline std::string shape(const Tensor& t) { return shape(t.sizes()); }

// The Python name, where it differs from the C++ name.
inline const char* dtype_name(ScalarType type) {
  constexpr std::pair<ScalarType, const char*> names[] = {{ScalarType::Double, "float64"},
                                                          {ScalarType::Float, "float32"},
                                                          {ScalarType::Half, "float16"},
                                                          {ScalarType::BFloat16, "bfloat16"},
                                                          {ScalarType::Byte, "uint8"},
                                                          {ScalarType::Char, "int8"},
                                                          {ScalarType::Short, "int16"},
                                                          {ScalarType::Int, "int32"},
                                                          {ScalarType::Long, "int64"},
                                                          {ScalarType::Bool, "bool"},
                                                          {ScalarType::ComplexFloat, "complex64"},
                                                          {ScalarType::ComplexDouble, "complex128"}};
  for (const auto& [scalar_type, name] : names)
    if (scalar_type == type) return name;
  return torch::headeronly::toString(type);
}

inline DType dtype_of(const Tensor& t, const char* op, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return DType::float64;
    case ScalarType::Float:
      return DType::float32;
    case ScalarType::Half:
      return DType::float16;
    case ScalarType::BFloat16:
      return DType::bfloat16;
    default:
      fail(op, ": ", name, " is ", dtype_name(t.scalar_type()),
           ", but must be float64, float32, float16 or bfloat16");
  }
}

// The dtype of acc_t: what elements of this dtype are summed in.
inline ScalarType acc_type(DType dtype) {
  return dtype == DType::float64 ? ScalarType::Double : ScalarType::Float;
}
inline ScalarType acc_type(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `t` must have the dtype of `like`. That the devices are the same is checked for all ops, in glue/errors.h.
inline void check_same_kind(const Tensor& t, const char* name, const Tensor& like, const char* like_name,
                            const char* op) {
  AIGC_CHECK(t.scalar_type() == like.scalar_type(), op, ": ", name, " is ", dtype_name(t.scalar_type()),
             ", but must be ", dtype_name(like.scalar_type()), ", as ", like_name, " is");
}

inline void check_same_shape(const Tensor& t, const char* name, const Tensor& like, const char* like_name,
                             const char* op) {
  AIGC_CHECK(t.sizes() == like.sizes(), op, ": ", name, " has shape ", shape(t), ", but ", like_name,
             " has shape ", shape(like));
}

// `t` must be a vector of `size` elements.
inline void check_vector(const Tensor& t, const char* name, int64_t size, const char* op) {
  AIGC_CHECK(t.dim() == 1 && t.size(0) == size, op, ": ", name, " has shape ", shape(t), ", but must be [",
             size, "]");
}

// `t` must be a vector with an element for each channel of x, whose dimension 1 they are.
inline void check_channels(const Tensor& t, const char* name, const Tensor& x, const char* op) {
  AIGC_CHECK(t.dim() == 1 && t.size(0) == x.size(1), op, ": ", name, " has shape ", shape(t),
             ", but must be [", x.size(1), "] for an x of shape ", shape(x));
}

inline int64_t wrap_dim(int64_t dim, const Tensor& t, const char* op) {
  AIGC_CHECK(t.dim() > 0, op, ": dim is ", dim, ", but a tensor of shape [] has no dimensions");
  AIGC_CHECK(dim >= -t.dim() && dim < t.dim(), op, ": dim is ", dim, ", but must be from ", -t.dim(), " to ",
             t.dim() - 1, " for a tensor of shape ", shape(t));
  return dim < 0 ? dim + t.dim() : dim;
}

// The strides of a contiguous tensor, or of a channels-last one: dimension 1 innermost (NHWC, NDHWC, ...).
inline std::vector<int64_t> dense_strides(Sizes sizes, bool channels_last) {
  const auto dims = static_cast<int64_t>(sizes.size());
  std::vector<int64_t> strides(dims);
  int64_t stride = 1;
  const auto place = [&](int64_t d) {
    strides[d] = stride;
    stride = size_product({stride, max(sizes[d], 1)});
  };
  if (channels_last) place(1);
  for (int64_t d = dims - 1; d >= 0; --d)
    if (!(channels_last && d == 1)) place(d);
  return strides;
}

inline bool has_strides(const Tensor& t, const std::vector<int64_t>& strides) {
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) > 1 && t.stride(d) != strides[d]) return false;
  return true;
}

inline bool is_channels_last(const Tensor& t) {
  return t.dim() >= 3 && !t.is_contiguous() && has_strides(t, dense_strides(t.sizes(), true));
}

// An uninitialized tensor on the device of `like`. It calls the C shim, because torch::stable::new_empty goes
// through the dispatcher and takes three times as long, which counts when a whole op takes microseconds.
inline Tensor empty_strided(const Tensor& like, Sizes sizes, Sizes strides, ScalarType type) {
  int32_t device_type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle;
  const AOTITorchError error =
      aoti_torch_empty_strided(int64_t(sizes.size()), sizes.data(), strides.data(), dtype, device_type,
                               like.is_cpu() ? 0 : like.get_device_index(), &handle);
  if (error != TORCH_SUCCESS)
    throw UnnamedError(text_of("a ", dtype_name(type), " tensor of shape ", shape(sizes),
                               " cannot be allocated: ", torch_reason()));
  return Tensor(handle);
}

// Contiguous or channels-last, of the dtype of `like`.
inline Tensor empty_dense(const Tensor& like, Sizes sizes, bool channels_last) {
  size_product(sizes);
  return empty_strided(like, sizes, dense_strides(sizes, channels_last), like.scalar_type());
}

inline Tensor empty_1d(const Tensor& like, int64_t size, ScalarType type) {
  const int64_t stride = 1;
  return empty_strided(like, {&size, 1}, {&stride, 1}, type);
}

// t itself if it is already contiguous (or channels-last, if asked for), else a copy that is.
inline Tensor as_format(const Tensor& t, bool channels_last) {
  if (!channels_last) return t.is_contiguous() ? t : torch::stable::contiguous(t);
  const auto strides = dense_strides(t.sizes(), true);
  if (has_strides(t, strides)) return t;
  Tensor copy = empty_strided(t, t.sizes(), strides, t.scalar_type());
  torch::stable::copy_(copy, t);
  return copy;
}

inline OptionalTensor contiguous(const OptionalTensor& t) {
  return t ? OptionalTensor(as_format(*t, false)) : std::nullopt;
}

// Contiguous and channels-last tensors themselves; any other layout is copied to a contiguous tensor.
inline Tensor as_dense(const Tensor& t) {
  return t.is_contiguous() || is_channels_last(t) ? t : torch::stable::contiguous(t);
}

// A dense tensor in memory order: element = (outer * channels + channel) * inner + i.
struct ChannelLayout {
  int64_t outer = 1, channels = 1, inner = 1;
};

inline ChannelLayout channel_layout(const Tensor& dense, int64_t dim) {
  const bool channels_last = is_channels_last(dense);
  const auto position = [&](int64_t d) {
    return channels_last && d > 0 ? (d == 1 ? dense.dim() : d - 1) : d;
  };
  ChannelLayout layout;
  layout.channels = dense.size(dim);
  for (int64_t d = 0; d < dense.dim(); ++d)
    if (d != dim) (position(d) > position(dim) ? layout.inner : layout.outer) *= dense.size(d);
  return layout;
}

inline const void* data_or_null(const OptionalTensor& t) { return t ? t->data_ptr() : nullptr; }

}  // namespace aigc
