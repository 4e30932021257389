// Launches a kernel where the call of the CUDA runtime that is named on the command line fails: test_launch.py.
#include "core/cuda_launch.h"

#include <cstdio>

static void kernel(int) {}

int main(int, char** arguments) {
  failing = arguments[1];
  try {
    aigc::launch(kernel, aigc::grid_size(100), 32, 64 << 10, nullptr, 1);
    std::puts("launched");
  } catch (const std::exception& error) {
    std::puts(error.what());
  }
  std::printf("%d\n", last_error);
}
