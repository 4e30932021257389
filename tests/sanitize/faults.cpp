// Faults that a build with AIGC_SANITIZE must report. They are compiled with the flags of the ops, and
// tests/sanitize/__main__.py calls them on the memory of a tensor.
#include <cstdint>

#define AIGC_EXPORT extern "C" __attribute__((visibility("default")))

AIGC_EXPORT float read_at(const float* values, int64_t i) { return values[i]; }
AIGC_EXPORT void write_at(float* values, int64_t i) { values[i] = 1; }
AIGC_EXPORT double read_misaligned(const char* bytes, int64_t i) {
  return *reinterpret_cast<const double*>(bytes + i);
}
AIGC_EXPORT int64_t largest_plus(const float*, int64_t i) { return INT64_MAX + i; }
