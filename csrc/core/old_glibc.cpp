// What lets a library that was linked on a newer system load with glibc 2.28, the oldest of torch's own wheels
// (manylinux_2_28). Three symbols would ask for more:
//
// - pow and log are bound to their versions of glibc 2.29, which only no longer set errno. The linker sends our calls
//   here (--wrap), and they go on to the first versions, which compute the same.
// - libstdc++ reads __libc_single_threaded (2.32) to save atomic operations on reference counts. Here it is always
//   0: there may be other threads.
#include <features.h>

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

#if defined(__x86_64__)
#define AIGC_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define AIGC_FIRST_GLIBC "GLIBC_2.17"
#endif

#define AIGC_HIDDEN extern "C" __attribute__((visibility("hidden")))

__asm__(".symver aigc_first_pow, pow@" AIGC_FIRST_GLIBC);
extern "C" double aigc_first_pow(double, double);
AIGC_HIDDEN double __wrap_pow(double base, double exponent);
AIGC_HIDDEN double __wrap_pow(double base, double exponent) { return aigc_first_pow(base, exponent); }

__asm__(".symver aigc_first_log, log@" AIGC_FIRST_GLIBC);
extern "C" double aigc_first_log(double);
AIGC_HIDDEN double __wrap_log(double x);
AIGC_HIDDEN double __wrap_log(double x) { return aigc_first_log(x); }

AIGC_HIDDEN char __libc_single_threaded;
char __libc_single_threaded = 0;

#else

extern "C" double __real_pow(double, double);
extern "C" double __wrap_pow(double base, double exponent);
extern "C" double __wrap_pow(double base, double exponent) { return __real_pow(base, exponent); }

extern "C" double __real_log(double);
extern "C" double __wrap_log(double x);
extern "C" double __wrap_log(double x) { return __real_log(x); }

#endif
