#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_runtime.h"

// The linker's names for the section of all __shared__ variables; null in a library that has none.
extern "C" char __start_simt_shared[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_simt_shared[] __attribute__((weak, visibility("hidden")));

namespace simt {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMostThreads = 1024;

struct Stop {};  // unwinds the fibers of a block that has failed

enum class State { ready, at_block_barrier, at_collective, done };

struct Fiber {
  ucontext_t context;
  State state = State::ready;
  dim3 index;
  const char* waits_for = nullptr;
};

struct Warp {
  uint64_t deposited[kWarp] = {}, results[kWarp] = {};
  unsigned arrived = 0, mask = 0;
  const char* what = nullptr;
};

std::mutex one_grid_at_a_time;  // shared memory and indices are the process's
std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
int current;
bool stopping;
std::string failure;
const char* kernel_name;
const std::function<void()>* kernel_body;
// Of exactly the launch's size, so that a sanitizer sees what goes past it by a plain pointer.
std::unique_ptr<char[]> dynamic_memory;
size_t dynamic_bytes;

char* stack_of(int fiber) {
  static char* const stacks =
      static_cast<char*>(mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  return stacks + kStackBytes * fiber;
}

std::string text(dim3 d) {
  std::ostringstream out;
  out << '(' << d.x << ", " << d.y << ", " << d.z << ')';
  return out.str();
}

void fail(int fiber, const std::string& what) {
  if (!failure.empty()) return;
  failure = std::string(kernel_name) + ", block " + text(block_index) + ", thread " +
            text(fibers[fiber].index) + ": " + what;
}

void enter() {
  try {
    (*kernel_body)();
  } catch (const Stop&) {
  } catch (const std::exception& error) {
    fail(current, error.what());
  }
  fibers[current].state = State::done;
  swapcontext(&fibers[current].context, &scheduler);
}

void wait(State state, const char* what) {
  Fiber& self = fibers[current];
  self.state = state;
  self.waits_for = what;
  swapcontext(&self.context, &scheduler);
  if (stopping) throw Stop();
}

void resume(int fiber) {
  current = fiber;
  thread_index = fibers[fiber].index;
  swapcontext(&scheduler, &fibers[fiber].context);
}

void start(int fiber) {
  Fiber& self = fibers[fiber];
  self.state = State::ready;
  const unsigned i = fiber;
  self.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
  getcontext(&self.context);
  self.context.uc_stack.ss_sp = stack_of(fiber);
  self.context.uc_stack.ss_size = kStackBytes;
  self.context.uc_link = nullptr;
  makecontext(&self.context, &enter, 0);
}

// Lets all fibers that can run, run. False when none could.
bool run_ready(const std::vector<int>& order) {
  bool any = false;
  for (const int i : order)
    if (fibers[i].state == State::ready) {
      resume(i);
      any = true;
      if (!failure.empty()) return true;
    }
  return any;
}

void run_block(const std::vector<int>& order) {
  if (__start_simt_shared) std::memset(__start_simt_shared, 0xff, __stop_simt_shared - __start_simt_shared);
  std::memset(dynamic_memory.get(), 0xff, dynamic_bytes);
  const int count = int(order.size());
  for (int i = 0; i < count; ++i) start(i);
  std::fill(warps.begin(), warps.end(), Warp());
  while (failure.empty()) {
    if (run_ready(order)) continue;
    const auto number = [&](State state) {
      return std::count_if(fibers.begin(), fibers.end(), [&](const Fiber& f) { return f.state == state; });
    };
    if (number(State::done) == count) return;
    if (number(State::at_block_barrier) == count) {
      for (Fiber& fiber : fibers) fiber.state = State::ready;
      continue;
    }
    const auto waiting = std::find_if(fibers.begin(), fibers.end(), [](const Fiber& f) {
      return f.state == State::at_block_barrier || f.state == State::at_collective;
    });
    std::ostringstream what;
    what << "waits at " << waiting->waits_for << ", which not all threads reach: " << number(State::done)
         << " of " << count << " have ended, " << number(State::at_block_barrier)
         << " wait at __syncthreads, " << number(State::at_collective) << " at a warp's collective";
    fail(int(waiting - fibers.begin()), what.str());
  }
  stopping = true;  // their destructors run
  for (int i = 0; i < count; ++i)
    if (fibers[i].state != State::done && fibers[i].waits_for) resume(i);
  stopping = false;
}

}  // namespace

void refuse(const std::string& why) {
  fail(current, why);
  throw Stop();
}

void check_shared(int64_t i, int64_t n, int64_t size) {
  if (i >= 0 && n >= 0 && i <= size && n <= size - i) return;
  std::ostringstream why;
  why << "shared memory of " << size << " elements is accessed at " << i;
  if (n != 1) why << ", " << n << " elements";
  refuse(why.str());
}

size_t dynamic_shared_bytes() { return dynamic_bytes; }

void* dynamic_shared(size_t first_byte, size_t alignment, size_t element_bytes, int64_t count) {
  std::ostringstream what;
  what << "dynamic shared memory: " << count << " elements of " << element_bytes << " bytes from byte "
       << first_byte;
  if (first_byte % alignment != 0) refuse(what.str() + " are not aligned");
  if (count < 0 || first_byte > dynamic_bytes || size_t(count) > (dynamic_bytes - first_byte) / element_bytes)
    refuse(what.str() + ", but the launch gave " + std::to_string(dynamic_bytes) + " bytes");
  return dynamic_memory.get() + first_byte;
}

int lane() { return current % kWarp; }

void block_barrier() { wait(State::at_block_barrier, "__syncthreads"); }

const uint64_t* exchange(const char* what, unsigned mask, uint64_t value) {
  Warp& warp = warps[current / kWarp];
  const unsigned own = 1u << lane();
  const int base = current / kWarp * kWarp;
  // The last warp of a block may be partial; lanes that do not exist are in no mask.
  const int lanes = std::min<int>(kWarp, int(fibers.size()) - base);
  if (lanes < kWarp) mask &= (1u << lanes) - 1;
  if (!(mask & own)) refuse(std::string(what) + ": the mask does not have the calling lane");
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.what = what;
  } else if (warp.mask != mask || std::strcmp(warp.what, what) != 0) {
    refuse(std::string(what) + ": other lanes of the warp are at " + warp.what + ", or have another mask");
  }
  warp.deposited[lane()] = value;
  warp.arrived |= own;
  if (warp.arrived == mask) {
    std::copy(std::begin(warp.deposited), std::end(warp.deposited), warp.results);
    warp.arrived = 0;
    for (int i = 0; i < lanes; ++i)
      if (mask >> i & 1) fibers[base + i].state = State::ready;
    // The others read before anyone can deposit again: each must come back here first.
    return warp.results;
  }
  wait(State::at_collective, what);
  return warp.results;
}

void run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard lock(one_grid_at_a_time);
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  if (count == 0 || count > kMostThreads || grid.x == 0 || grid.y == 0 || grid.z == 0)
    throw std::runtime_error(std::string(kernel) + ": a grid of " + text(grid) + " blocks of " + text(block) +
                             " threads cannot be launched");
  if (shared_bytes > kMostDynamicShared)
    throw std::runtime_error(std::string(kernel) + ": " + std::to_string(shared_bytes) +
                             " bytes of dynamic shared memory are more than all cards have");
  kernel_name = kernel;
  kernel_body = &body;
  block_size = block;
  grid_size = grid;
  fibers = std::vector<Fiber>(count);
  warps = std::vector<Warp>((count + kWarp - 1) / kWarp);
  failure.clear();
  dynamic_memory = std::make_unique<char[]>(shared_bytes);
  dynamic_bytes = shared_bytes;
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  const char* seed = std::getenv("AIGC_SIMT_SEED");
  std::mt19937 random(seed ? std::strtoul(seed, nullptr, 10) : 0);
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        if (seed) std::shuffle(order.begin(), order.end(), random);
        run_block(order);
        if (!failure.empty()) throw std::runtime_error(failure);
      }
}

}  // namespace simt
