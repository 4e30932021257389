// Faults that a build with AIGC_SANITIZE must report, and one for AIGC_TSAN. They are compiled with the flags of the ops, and
// tests/sanitize/__main__.py calls them on the memory of a tensor.
#include <cstdint>
#include <thread>

#define AIGC_EXPORT extern "C" __attribute__((visibility("default")))

AIGC_EXPORT float read_at(const float* values, int64_t i) { return values[i]; }
AIGC_EXPORT void write_at(float* values, int64_t i) { values[i] = 1; }
AIGC_EXPORT double read_misaligned(const char* bytes, int64_t i) {
  return *reinterpret_cast<const double*>(bytes + i);
}
AIGC_EXPORT int64_t largest_plus(const float*, int64_t i) { return INT64_MAX + i; }

// Two threads write to values[0] and values[i].
AIGC_EXPORT void write_from_two_threads(float* values, int64_t i) {
  std::thread other([&] { values[i] = 1; });
  values[0] = 2;
  other.join();
}
