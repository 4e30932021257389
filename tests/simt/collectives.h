// Warp collectives. A lane that takes part waits until all lanes of its mask have made the same call with the
// same mask; masks without a common lane proceed independently of each other.
//
// There is no __activemask: which lanes run together is up to the hardware, and no kernel may depend on it.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "cuda_runtime.h"

namespace simt {

constexpr int kWarp = 32;

struct Gathered {
  unsigned mask;          // without the lanes that the block does not have
  const uint64_t* value;  // one for each lane, valid until the caller's next collective
};

int lane();
// Deposits the bits of `value`; once all lanes of `mask` have called it, returns the bits of all of them.
Gathered gather(const char* what, unsigned mask, uint64_t value);

template <class T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline void check_width(const char* what, int width) {
  if (width < 1 || width > kWarp || !std::has_single_bit(unsigned(width)))
    refuse(std::string(what) + ": the width is " + std::to_string(width) +
           ", but must be 1, 2, 4, 8, 16 or 32");
}
inline void check_delta(const char* what, unsigned delta) {
  if (delta >= unsigned(kWarp))
    refuse(std::string(what) + ": a distance of " + std::to_string(delta) + " lanes");
}

// The value of lane `source`. In CUDA, the value of a lane that does not take part is undefined.
template <class T>
T shuffle(const char* what, unsigned mask, T value, int source) {
  const Gathered all = gather(what, mask, to_bits(value));
  if (!(all.mask >> source & 1))
    refuse(std::string(what) + ": reads from lane " + std::to_string(source) + ", which is not in its mask");
  return from_bits<T>(all.value[source]);
}

template <class T, class F>
T reduce(const char* what, unsigned mask, T value, F f) {
  const Gathered all = gather(what, mask, to_bits(value));
  const int first = std::countr_zero(all.mask);
  T result = from_bits<T>(all.value[first]);
  for (int i = first + 1; i < kWarp; ++i)
    if (all.mask >> i & 1) result = f(result, from_bits<T>(all.value[i]));
  return result;
}

template <class T>
concept Int32 = std::same_as<T, int> || std::same_as<T, unsigned>;

}  // namespace simt

inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::gather("__syncwarp", mask, 0); }

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = simt::kWarp) {
  simt::check_width("__shfl_sync", width);
  return simt::shuffle("__shfl_sync", mask, value, (simt::lane() & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  simt::check_width("__shfl_down_sync", width);
  simt::check_delta("__shfl_down_sync", delta);
  const int lane = simt::lane(), from = lane + int(delta);
  return simt::shuffle("__shfl_down_sync", mask, value, from / width == lane / width ? from : lane);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = simt::kWarp) {
  simt::check_width("__shfl_up_sync", width);
  simt::check_delta("__shfl_up_sync", delta);
  const int lane = simt::lane(), from = lane - int(delta);
  return simt::shuffle("__shfl_up_sync", mask, value, from >= lane / width * width ? from : lane);
}
// Lanes of an earlier group of `width` can be read, lanes of a later group cannot.
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = simt::kWarp) {
  simt::check_width("__shfl_xor_sync", width);
  simt::check_delta("__shfl_xor_sync", unsigned(bits));
  const int lane = simt::lane(), from = lane ^ bits;
  return simt::shuffle("__shfl_xor_sync", mask, value, from / width <= lane / width ? from : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned own = unsigned(predicate != 0) << simt::lane();
  return simt::reduce("__ballot_sync", mask, own, std::bit_or<>());
}
inline int __any_sync(unsigned mask, int predicate) {
  return simt::reduce("__any_sync", mask, int(predicate != 0), std::bit_or<>());
}
inline int __all_sync(unsigned mask, int predicate) {
  return simt::reduce("__all_sync", mask, int(predicate != 0), std::bit_and<>());
}
// The lanes that have the caller's value.
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  const simt::Gathered all = simt::gather("__match_any_sync", mask, simt::to_bits(value));
  unsigned same = 0;
  for (int i = 0; i < simt::kWarp; ++i)
    if ((all.mask >> i & 1) && all.value[i] == simt::to_bits(value)) same |= 1u << i;
  return same;
}

template <simt::Int32 T>
T __reduce_add_sync(unsigned mask, T value) {
  const auto add = [](unsigned a, unsigned b) { return a + b; };  // wraps
  return T(simt::reduce("__reduce_add_sync", mask, unsigned(value), add));
}
template <simt::Int32 T>
T __reduce_min_sync(unsigned mask, T value) {
  return simt::reduce("__reduce_min_sync", mask, value, [](T a, T b) { return a < b ? a : b; });
}
template <simt::Int32 T>
T __reduce_max_sync(unsigned mask, T value) {
  return simt::reduce("__reduce_max_sync", mask, value, [](T a, T b) { return a > b ? a : b; });
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value) {
  return simt::reduce("__reduce_and_sync", mask, value, std::bit_and<>());
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value) {
  return simt::reduce("__reduce_or_sync", mask, value, std::bit_or<>());
}
inline unsigned __reduce_xor_sync(unsigned mask, unsigned value) {
  return simt::reduce("__reduce_xor_sync", mask, value, std::bit_xor<>());
}
