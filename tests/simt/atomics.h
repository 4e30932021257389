// Accesses to global memory: cache hints, fences and atomics. One thread runs at a time and yields only at
// barriers and collectives, so all of them are plain accesses; a thread that spins until another has written
// never ends. Types for which CUDA has no such function do not compile.
#pragma once

#include <concepts>
#include <type_traits>

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
void __stcs(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stwb(T* address, std::type_identity_t<T> value) {
  *address = value;
}
template <class T>
void __stcg(T* address, std::type_identity_t<T> value) {
  *address = value;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

namespace simt {

template <class T, class... Types>
concept OneOf = (std::same_as<T, Types> || ...);
template <class T>
concept Bits = OneOf<T, int, unsigned, unsigned long long>;

template <class T>
T replace(T* address, T value) {
  const T old = *address;
  *address = value;
  return old;
}

}  // namespace simt

// The value's type is not deduced, since CUDA's functions are not templates.
template <simt::OneOf<int, unsigned, unsigned long long, float, double> T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  if constexpr (std::same_as<T, int>)  // wraps
    return simt::replace(address, int(unsigned(*address) + unsigned(value)));
  else
    return simt::replace(address, T(*address + value));
}
template <simt::OneOf<int, unsigned> T>
T atomicSub(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, T(unsigned(*address) - unsigned(value)));
}
template <simt::OneOf<int, unsigned, unsigned long long, float> T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, value);
}
template <simt::OneOf<int, unsigned, long long, unsigned long long> T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, value < *address ? value : *address);
}
template <simt::OneOf<int, unsigned, long long, unsigned long long> T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, value > *address ? value : *address);
}
template <simt::Bits T>
T atomicAnd(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, *address & value);
}
template <simt::Bits T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, *address | value);
}
template <simt::Bits T>
T atomicXor(T* address, std::type_identity_t<T> value) {
  return simt::replace(address, *address ^ value);
}
template <simt::OneOf<int, unsigned, unsigned long long, unsigned short> T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return simt::replace(address, *address == expected ? value : *address);
}
inline unsigned atomicInc(unsigned* address, unsigned last) {
  return simt::replace(address, *address >= last ? 0u : *address + 1);
}
inline unsigned atomicDec(unsigned* address, unsigned last) {
  return simt::replace(address, *address == 0 || *address > last ? last : *address - 1);
}
