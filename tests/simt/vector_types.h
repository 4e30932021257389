// CUDA's vector types, with CUDA's alignment: an access through a misaligned pointer is a fault.
#pragma once

#define SIMT_VECTOR2(name, T, alignment)         \
  struct alignas(alignment) name##2 { T x, y; }; \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define SIMT_VECTOR3(name, T)    \
  struct name##3 { T x, y, z; }; \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }
#define SIMT_VECTOR4(name, T, alignment)               \
  struct alignas(alignment) name##4 { T x, y, z, w; }; \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR2(uchar, unsigned char, 2)
SIMT_VECTOR3(uchar, unsigned char)
SIMT_VECTOR4(uchar, unsigned char, 4)
SIMT_VECTOR2(ushort, unsigned short, 4)
SIMT_VECTOR4(ushort, unsigned short, 8)
SIMT_VECTOR2(int, int, 8)
SIMT_VECTOR3(int, int)
SIMT_VECTOR4(int, int, 16)
SIMT_VECTOR2(uint, unsigned, 8)
SIMT_VECTOR3(uint, unsigned)
SIMT_VECTOR4(uint, unsigned, 16)
SIMT_VECTOR2(longlong, long long, 16)
SIMT_VECTOR2(ulonglong, unsigned long long, 16)
SIMT_VECTOR2(float, float, 8)
SIMT_VECTOR3(float, float)
SIMT_VECTOR4(float, float, 16)
SIMT_VECTOR2(double, double, 16)

#undef SIMT_VECTOR2
#undef SIMT_VECTOR3
#undef SIMT_VECTOR4
