#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_pipeline_primitives.h"
#include "cuda_runtime.h"

namespace simt {

dim3 thread_index, block_index, block_size, grid_size;

namespace {

constexpr size_t kStackBytes = 256 << 10;
constexpr int kMostThreads = 1024;

struct Stop {};  // thrown to unwind the fibers of a block that has failed

enum class State { ready, at_block_barrier, at_collective, done };

struct Copy {
  void* to;
  size_t bytes;
  unsigned char data[16];
  unsigned batch;
};

struct Fiber {
  ucontext_t context;  // where it begins
  void* place[5];      // where it resumes
  bool begun = false;
  void* asan_frames = nullptr;
  State state = State::ready;
  dim3 index;
  const char* waits_for = nullptr;
  // The warp collective that it waits at, and the result.
  unsigned mask = 0;
  uint64_t deposited = 0, gathered[kWarp];
  // Asynchronous copies that are pending, and the number of batches that it has committed.
  std::vector<Copy> copies;
  unsigned batches = 0;
};

std::mutex one_grid_at_a_time;  // shared memory and indices are global variables
std::vector<Fiber> fibers;
void* scheduler[5];
int current;
bool stopping;
std::string failure;
const std::function<void()>* kernel_body;
std::map<char*, size_t> static_arrays;  // of all kernels that have run
// Exactly as large as the launch asked for, so that a sanitizer detects accesses beyond it.
std::unique_ptr<char[]> dynamic_memory;
size_t dynamic_bytes;

char* stack_of(int fiber) {
  static char* const stacks =
      static_cast<char*>(mmap(nullptr, kStackBytes * kMostThreads, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  if (stacks == MAP_FAILED) throw std::bad_alloc();
  return stacks + kStackBytes * fiber;
}

// With the template arguments, which are only in the symbol table: kernels have internal linkage, so the
// loader does not know their names.
std::string name_of(Kernel kernel) {
  Dl_info info;
  link_map* loaded = nullptr;
  if (!dladdr1(kernel.address, &info, reinterpret_cast<void**>(&loaded), RTLD_DL_LINKMAP))
    return kernel.launch;
  std::ostringstream command;
  command << "LD_PRELOAD= addr2line -Cfe \"" << (*loaded->l_name ? loaded->l_name : "/proc/$PPID/exe")
          << "\" 0x" << std::hex << reinterpret_cast<uintptr_t>(kernel.address) - loaded->l_addr
          << " 2>/dev/null";
  std::string name;
  if (FILE* output = popen(command.str().c_str(), "r")) {
    for (int c; (c = std::fgetc(output)) != EOF && c != '\n';) name += char(c);
    pclose(output);
  }
  return name.empty() || name[0] == '?' ? kernel.launch : name;
}

std::string text(dim3 d) {
  std::ostringstream out;
  out << '(' << d.x << ", " << d.y << ", " << d.z << ')';
  return out.str();
}

std::string mask_text(unsigned mask) {
  std::ostringstream out;
  out << "mask 0x" << std::hex << mask;
  return out.str();
}

void fail(int fiber, const std::string& what) {
  if (!failure.empty()) return;
  failure = "block " + text(block_index) + ", thread " + text(fibers[fiber].index) + ": " + what;
}

// AddressSanitizer must be told about every change of the stack, before and after it.
#if defined(__SANITIZE_ADDRESS__)
const void* scheduler_stack;
size_t scheduler_stack_bytes;
void* scheduler_asan_frames;
void before_entering(int fiber) {
  __sanitizer_start_switch_fiber(&scheduler_asan_frames, stack_of(fiber), kStackBytes);
}
void after_entering(Fiber& self) {
  __sanitizer_finish_switch_fiber(self.asan_frames, &scheduler_stack, &scheduler_stack_bytes);
}
void before_leaving(Fiber& self) {
  __sanitizer_start_switch_fiber(self.state == State::done ? nullptr : &self.asan_frames, scheduler_stack,
                                 scheduler_stack_bytes);
}
void after_leaving() { __sanitizer_finish_switch_fiber(scheduler_asan_frames, nullptr, nullptr); }
// Those of the thread that used this stack before.
void forget_frames(int fiber) { ASAN_UNPOISON_MEMORY_REGION(stack_of(fiber), kStackBytes); }
#else
void before_entering(int) {}
void after_entering(Fiber&) {}
void before_leaving(Fiber&) {}
void after_leaving() {}
void forget_frames(int) {}
#endif

// Fibers switch by the compiler's own longjmp, which only swaps registers: swapcontext also makes two system
// calls for the signal mask. AddressSanitizer forgets what it knows of a stack when it sees a jump, so these
// functions are not instrumented: with libc's longjmp it would miss what a thread does to its variables after
// the first switch.
//
// GCC miscompiles a function that both sets a place and jumps, so the jump is in a function of its own that
// is opaque to it.
__attribute__((noipa, no_sanitize_address)) void jump(void** place) { __builtin_longjmp(place, 1); }

__attribute__((noinline, no_sanitize_address)) void leave(Fiber& self) {
  if (__builtin_setjmp(self.place) == 0) {
    before_leaving(self);
    jump(scheduler);
  }
  after_entering(fibers[current]);
}

// Ends the thread.
[[noreturn]] void end(Fiber& self) {
  self.state = State::done;
  leave(self);
  std::abort();
}

void enter() {
  after_entering(fibers[current]);
  try {
    (*kernel_body)();
  } catch (const Stop&) {
  } catch (const std::exception& error) {
    fail(current, error.what());
  }
  end(fibers[current]);
}

void wait(State state, const char* what) {
  Fiber& self = fibers[current];
  self.state = state;
  self.waits_for = what;
  leave(self);
  if (stopping) throw Stop();
}

__attribute__((noinline, no_sanitize_address)) void resume(int fiber) {
  current = fiber;
  thread_index = fibers[fiber].index;
  if (__builtin_setjmp(scheduler) != 0) return after_leaving();
  before_entering(fiber);
  Fiber& next = fibers[fiber];
  if (next.begun) jump(next.place);
  next.begun = true;
  setcontext(&next.context);
}

void start(int fiber) {
  Fiber& self = fibers[fiber];
  self.state = State::ready;
  self.begun = false;
  self.asan_frames = nullptr;
  forget_frames(fiber);
  self.waits_for = nullptr;
  self.copies.clear();
  self.batches = 0;
  const unsigned i = fiber;
  self.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
  getcontext(&self.context);
  self.context.uc_stack.ss_sp = stack_of(fiber);
  self.context.uc_stack.ss_size = kStackBytes;
  self.context.uc_link = nullptr;
  makecontext(&self.context, &enter, 0);
}

// Runs all fibers that are ready. Returns false if there was none.
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

// Whether the fiber waits at the same collective as `self`.
bool is_at(const Fiber& fiber, const Fiber& self) {
  return fiber.state == State::at_collective && fiber.mask == self.mask &&
         std::strcmp(fiber.waits_for, self.waits_for) == 0;
}

// No thread can proceed: reports what the first of those that wait is waiting for.
void report_deadlock() {
  const auto waiting =
      std::find_if(fibers.begin(), fibers.end(), [](const Fiber& f) { return f.state != State::done; });
  std::ostringstream what;
  what << "waits at " << waiting->waits_for;
  const auto doing = [](const Fiber& fiber) {
    if (fiber.state == State::done) return std::string("has ended");
    std::string where = std::string("waits at ") + fiber.waits_for;
    return fiber.state == State::at_collective ? where + " with " + mask_text(fiber.mask) : where;
  };
  if (waiting->state == State::at_collective) {
    const auto warp = fibers.begin() + (waiting - fibers.begin()) / kWarp * kWarp;
    const auto is_missing = [&](const Fiber& f) {
      return (waiting->mask >> (&f - &*warp) & 1) && !is_at(f, *waiting);
    };
    const auto missing = std::find_if(warp, fibers.end(), is_missing);
    what << " with " << mask_text(waiting->mask) << " for thread " << text(missing->index) << ", which "
         << doing(*missing);
  } else {
    const auto elsewhere = [](const Fiber& f) { return f.state != State::at_block_barrier; };
    const auto missing = std::find_if(fibers.begin(), fibers.end(), elsewhere);
    what << ", which not all threads reach: " << std::count_if(fibers.begin(), fibers.end(), elsewhere)
         << " of " << fibers.size() << " do not, and the first of them, " << text(missing->index) << ", "
         << doing(*missing);
  }
  fail(int(waiting - fibers.begin()), what.str());
}

void run_block(const std::vector<int>& order) {
  for (const auto& [begin, bytes] : static_arrays) std::memset(begin, 0xff, bytes);
  std::memset(dynamic_memory.get(), 0xff, dynamic_bytes);
  const int count = int(order.size());
  for (int i = 0; i < count; ++i) start(i);
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
    report_deadlock();
  }
  stopping = true;  // so that the destructors of the other fibers' objects run
  for (int i = 0; i < count; ++i)
    if (fibers[i].state != State::done && fibers[i].waits_for) resume(i);
  stopping = false;
}

}  // namespace

void refuse(const std::string& why) {
  fail(current, why);
  throw Stop();
}

void add_shared(void* begin, size_t bytes) {
  char* const first = static_cast<char*>(begin);
  if (first >= stack_of(0) && first < stack_of(kMostThreads))
    refuse("a SharedArray that is not declared __shared__");
  std::memset(begin, 0xff, bytes);
  size_t& known = static_arrays[first];  // an array of arrays has the address of its first element
  known = std::max(known, bytes);
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

Gathered gather(const char* what, unsigned mask, uint64_t value) {
  Fiber& self = fibers[current];
  Fiber* const warp = &self - lane();
  // The last warp of a block may be partial; lanes that do not exist are in no mask.
  const int lanes = std::min<int>(kWarp, int(fibers.data() + fibers.size() - warp));
  if (lanes < kWarp) mask &= (1u << lanes) - 1;
  const auto named = [](unsigned mask, int lane) { return (mask >> lane & 1) != 0; };
  if (!named(mask, lane()))
    refuse(std::string(what) + ": " + mask_text(mask) + " does not have the calling lane, " +
           std::to_string(lane()));
  self.mask = mask;
  self.waits_for = what;
  unsigned arrived = 1u << lane();
  for (int i = 0; i < lanes; ++i)
    if (is_at(warp[i], self)) arrived |= 1u << i;
  self.deposited = value;
  if (arrived != mask) {
    wait(State::at_collective, what);
    return {mask, self.gathered};
  }
  // Each lane gets a copy: the first to resume may deposit again before the others have read.
  for (int i = 0; i < lanes; ++i) self.gathered[i] = warp[i].deposited;
  for (int i = 0; i < lanes; ++i)
    if (i != lane() && named(mask, i)) {
      std::copy_n(self.gathered, lanes, warp[i].gathered);
      warp[i].state = State::ready;
    }
  return {mask, self.gathered};
}

void copy_async(void* shared, const void* global, size_t bytes, size_t zero_bytes) {
  const auto check = [](bool good, const char* why) {
    if (!good) refuse(std::string("__pipeline_memcpy_async: ") + why);
  };
  char* const to = static_cast<char*>(shared);
  const auto inside = [&](char* begin, size_t size) { return to >= begin && to + bytes <= begin + size; };
  const auto array = static_arrays.upper_bound(to);
  check(bytes == 4 || bytes == 8 || bytes == 16, "the size must be 4, 8 or 16 bytes");
  check(zero_bytes <= bytes, "more bytes are to be zero than there are");
  check(reinterpret_cast<uintptr_t>(shared) % bytes == 0, "the destination is not aligned to the size");
  check(reinterpret_cast<uintptr_t>(global) % bytes == 0, "the source is not aligned to the size");
  check(inside(dynamic_memory.get(), dynamic_bytes) ||
            (array != static_arrays.begin() && inside(std::prev(array)->first, std::prev(array)->second)),
        "the destination is not in shared memory");
  Copy copy{shared, bytes, {}, fibers[current].batches};
  std::memcpy(copy.data, global, bytes - zero_bytes);
  std::memset(shared, 0xff, bytes);
  fibers[current].copies.push_back(copy);
}

void commit_copies() { ++fibers[current].batches; }

void wait_for_copies(unsigned batches_left) {
  Fiber& self = fibers[current];
  std::erase_if(self.copies, [&](const Copy& copy) {
    if (copy.batch + batches_left >= self.batches) return false;
    std::memcpy(copy.to, copy.data, copy.bytes);
    return true;
  });
}

void run(Kernel kernel, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body) {
  const std::lock_guard lock(one_grid_at_a_time);
  const uint64_t count = uint64_t(block.x) * block.y * block.z;
  const bool too_large =
      count > kMostThreads || block.z > 64 || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535;
  if (count == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0 || too_large)
    throw std::runtime_error(name_of(kernel) + ": a grid of " + text(grid) + " blocks of " + text(block) +
                             " threads cannot be launched");
  if (shared_bytes > kMostDynamicShared)
    throw std::runtime_error(name_of(kernel) + ": " + std::to_string(shared_bytes) +
                             " bytes of dynamic shared memory are more than all cards have");
  kernel_body = &body;
  block_size = block;
  grid_size = grid;
  fibers = std::vector<Fiber>(count);
  failure.clear();
  dynamic_memory = std::make_unique<char[]>(shared_bytes);
  dynamic_bytes = shared_bytes;
  std::vector<int> order(count);
  std::vector<uint64_t> blocks(uint64_t(grid.x) * grid.y * grid.z);
  std::iota(order.begin(), order.end(), 0);
  std::iota(blocks.begin(), blocks.end(), 0);
  const char* seed = std::getenv("AIGC_SIMT_SEED");
  std::mt19937 random(seed ? std::strtoul(seed, nullptr, 10) : 0);
  if (seed) std::shuffle(blocks.begin(), blocks.end(), random);
  for (const uint64_t i : blocks) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    if (seed) std::shuffle(order.begin(), order.end(), random);
    run_block(order);
    if (!failure.empty()) throw std::runtime_error(name_of(kernel) + ", " + failure);
  }
}

}  // namespace simt

#if !defined(__SANITIZE_ADDRESS__)  // with it, the sanitizer has handlers of its own

namespace {
struct Mismatch {  // defined by the compiler
  const char* file;
  uint32_t line, column;
  const void* type;
  uint8_t log_alignment, kind;
};
}  // namespace

// x86 allows misaligned accesses; on a GPU they are fatal. Kernels are compiled with -fsanitize=alignment,
// whose checks call this when they fail. The thread is abandoned, since it cannot be unwound from here.
extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* where, uintptr_t address) {
  std::ostringstream what;
  what << "an access to address 0x" << std::hex << address << std::dec
       << " that is misaligned: its type needs " << (1 << where->log_alignment) << " bytes (" << where->file
       << ':' << where->line << ')';
  simt::fail(simt::current, what.str());
  simt::end(simt::fibers[simt::current]);
}

#endif
