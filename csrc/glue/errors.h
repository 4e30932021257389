// Errors that say what is wrong with which argument, and sizes that don't overflow.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

// PyTorch's reason for the last call that it refused; null before torch 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace aigc {

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

// The message is for the user: no file, no line, only what is wrong with which argument.
#define AIGC_CHECK(condition, ...) \
  if (!(condition)) ::aigc::fail(__VA_ARGS__)

template <class... Args>
std::string text_of(const Args&... args) {
  std::ostringstream message;
  (message << ... << args);
  return message.str();
}

template <class... Args>
[[noreturn]] void fail(const Args&... args) {
  throw std::runtime_error(text_of(args...));
}

// An error that does not name the op yet: Boxed does.
struct UnnamedError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ---- sizes ------------------------------------------------------------------------------------------------
// What an op computes from sizes and other integers of its caller: an error where 64 bits are too few. The
// fake kernels refuse the same in aigc_ext/ops/_arguments.py.

inline int64_t size_if_fits(bool overflows, int64_t result, Sizes operands, const char* operation) {
  if (!overflows) return result;
  std::ostringstream message;
  message << "the sizes are too large: ";
  for (size_t i = 0; i < operands.size(); ++i) message << (i > 0 ? operation : "") << operands[i];
  throw UnnamedError(message.str() + " is more than 64 bits hold");
}

inline int64_t size_product(Sizes factors) {
  int64_t result = 1;
  bool overflows = false;
  if (std::find(factors.begin(), factors.end(), 0) != factors.end()) return 0;
  for (const int64_t factor : factors) overflows |= __builtin_mul_overflow(result, factor, &result);
  return size_if_fits(overflows, result, factors, " * ");
}

inline int64_t size_sum(Sizes terms) {
  int64_t result = 0;
  bool overflows = false;
  for (const int64_t term : terms) overflows |= __builtin_add_overflow(result, term, &result);
  return size_if_fits(overflows, result, terms, " + ");
}

// ---- calls ------------------------------------------------------------------------------------------------

// Takes schemas instead of PyTorch's library, and finds the arguments' names in that of an op.
class ArgumentNames {
 public:
  explicit ArgumentNames(std::string_view op) : op_(op) {}

  void def(std::string_view schema) {
    if (schema.size() > op_.size() && schema.starts_with(op_) && schema[op_.size()] == '(')
      arguments_ = schema.substr(op_.size() + 1, schema.find(") -> ") - op_.size() - 1);
  }

  std::string operator[](size_t index) const {
    std::string_view rest = arguments_;
    for (size_t i = 0; i < index; ++i) rest.remove_prefix(std::min(rest.find(", ") + 2, rest.size()));
    rest = rest.substr(0, rest.find(", "));
    return std::string(rest.substr(rest.rfind(' ') + 1));
  }

 private:
  std::string_view op_, arguments_;
};

// ---- devices ----------------------------------------------------------------------------------------------
// All tensors of a call are on one device: a kernel that is given another card's memory ends in an illegal
// access. PyTorch's dispatcher looks at the kind of device alone, so Boxed compares kind and index.

struct Device {
  int32_t type = 0, index = 0;

  explicit Device(const torch::stable::Tensor& t) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &type));
    if (!is_cpu()) STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &index));
  }

  bool is_cpu() const { return type == aoti_torch_device_type_cpu(); }
  bool operator==(const Device&) const = default;
};

// As PyTorch writes it.
inline std::ostream& operator<<(std::ostream& out, const Device& device) {
  if (device.is_cpu()) return out << "cpu";
  if (device.type == aoti_torch_device_type_cuda()) return out << "cuda:" << device.index;
  return out << "device type " << device.type << ':' << device.index;
}

// A tensor of a call: that of an argument, or an element of one.
struct Place {
  size_t argument = 0;
  int64_t element = -1;

  std::string name(const ArgumentNames& names) const {
    return element < 0 ? names[argument] : text_of(names[argument], '[', element, ']');
  }
};

// Calls visit(tensor, place) for the tensors among the arguments, except for those that are None.
template <class Visit, class... Arguments>
void for_tensors(const Visit& visit, const Arguments&... arguments) {
  using torch::stable::Tensor;
  size_t argument = 0;
  const auto one = [&](const Tensor& t, int64_t element) {
    if (t.defined()) visit(t, Place{argument, element});
  };
  [[maybe_unused]] const auto all = [&](const auto& value) {
    using Value = std::remove_cvref_t<decltype(value)>;
    if constexpr (std::is_same_v<Value, Tensor>) {
      one(value, -1);
    } else if constexpr (std::is_same_v<Value, std::optional<Tensor>>) {
      if (value) one(*value, -1);
    } else if constexpr (std::is_same_v<Value, std::vector<Tensor>>) {
      for (size_t i = 0; i < value.size(); ++i) one(value[i], static_cast<int64_t>(i));
    }
    ++argument;
  };
  (all(arguments), ...);
}

// From the text of STABLE_TORCH_ERROR_CODE_CHECK, which shows code and a path of the machine that compiled
// it, what PyTorch was asked for; empty if it is another text.
inline std::string refused_call(std::string_view text) {
  if (text.find(" API call failed at ") == text.npos) return "";
  if (const size_t aten = text.find("\"aten::"); aten != text.npos) {
    text.remove_prefix(aten + 1);
    return std::string(text.substr(0, text.find('"')));
  }
  return std::string(text.substr(0, text.find('(')));
}

inline std::string torch_reason() {
  const char* reason =
      torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace() : nullptr;
  return reason && *reason ? reason : "PyTorch gave no reason; most likely there is not enough memory";
}

template <size_t N>
struct Name {
  char text[N];
  constexpr Name(const char (&name)[N]) { std::copy_n(name, N, text); }
  std::string_view with_overload() const { return {text, N - 1}; }
  std::string_view of_op() const { return with_overload().substr(0, with_overload().find('.')); }
};

// `function`, whose errors name the op and the argument, whatever they come from: a tensor that is None is
// noticed only where PyTorch refuses it, since a check on every call would cost more than it is worth.
template <auto function, Name name, void (*schemas)(ArgumentNames&)>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...), Name name,
          void (*schemas)(ArgumentNames&)>
struct Boxed<function, name, schemas> {
  static Result call(Arguments... arguments) {
    try {
      check_devices(arguments...);
      return function(std::forward<Arguments>(arguments)...);
    } catch (const UnnamedError& error) {
      fail(name.of_op(), ": ", error.what());
    } catch (const std::bad_alloc&) {
      fail_for_memory();
    } catch (const std::exception& error) {
      const std::array<bool, sizeof...(Arguments)> missing{is_missing(arguments)...};
      for (size_t i = 0; i < missing.size(); ++i) {
        if (missing[i]) fail(name.of_op(), ": ", names()[i], " is None, but must be a tensor");
      }
      const std::string refused = refused_call(error.what());
      if (refused.empty()) throw;
      const std::string reason = torch_reason();
      if (reason == std::bad_alloc().what()) fail_for_memory();  // in one of its threads
      fail(name.of_op(), ": ", refused, " failed: ", reason);
    }
  }

 private:
  static ArgumentNames names() {
    ArgumentNames names(name.with_overload());
    schemas(names);
    return names;
  }

  static void check_devices(const std::remove_cvref_t<Arguments>&... arguments) {
    std::optional<std::pair<Device, Place>> first;
    for_tensors(
        [&](const torch::stable::Tensor& t, const Place& place) {
          const Device device(t);
          if (!first) first.emplace(device, place);
          AIGC_CHECK(device == first->first, name.of_op(), ": ", place.name(names()), " is on ", device,
                     ", but must be on ", first->first, ", as ", first->second.name(names()), " is");
        },
        arguments...);
  }

  [[noreturn]] static void fail_for_memory() {
    fail(name.of_op(), ": there is not enough memory for its intermediate values");
  }
  template <class T>
  static bool is_missing(const T& argument) {
    if constexpr (std::is_same_v<T, torch::stable::Tensor>) return !argument.defined();
    return false;
  }
};

}  // namespace aigc

// Registers `function` as the implementation of an op of this file's AIGC_OPS.
#define AIGC_BIND(library, name, function) \
  library.impl(name, TORCH_BOX((&::aigc::Boxed<&function, name, &aigc_schemas<::aigc::ArgumentNames>>::call)))
