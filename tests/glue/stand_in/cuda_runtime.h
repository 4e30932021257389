// A CUDA runtime whose calls fail as launch.cpp says, and that keeps the last error until it is asked for it.
#pragma once
#include <cstddef>
#include <string>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorOfThisTest = 719;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8, cudaDevAttrMultiProcessorCount = 16;

inline std::string failing;  // the name of the call that fails
inline cudaError_t last_error = cudaSuccess;
inline cudaError_t answer(const char* call) {
  return failing == call ? last_error = cudaErrorOfThisTest : cudaSuccess;
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "the reason"; }
inline cudaError_t cudaFuncSetAttribute(const void*, int, int) { return answer("cudaFuncSetAttribute"); }
inline cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  return answer("cudaLaunchKernel");
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return answer("cudaGetDevice");
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 4;
  return answer("cudaDeviceGetAttribute");
}
