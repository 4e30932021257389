// Preloaded into a process (LD_PRELOAD), this library counts the process's calls of the system and lets chosen
// ones fail, whoever makes them: Python, Pillow, safetensors, PyTorch, our kernels. faults.py has the Python side.
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <new>

namespace {

// The order of faults.KINDS
enum Kind { OPEN, CREATE, READ, WRITE, FSYNC, RENAME, MKDIR, UNLINK, LIST, MAP, TENSOR, WORKSPACE };
const char* const kNames[] = {"open",  "create", "read", "write", "fsync",  "rename",
                              "mkdir", "unlink", "list", "map",   "tensor", "workspace"};
constexpr int SHORT_WRITE = -1;
constexpr int KILL = -2;
constexpr size_t kSmall = 1024;  // bytes: PyTorch's tensors for single numbers and shapes are not counted

struct Plan {
  char root[4096];         // only files below it count
  size_t root_length = 0;  // 0: not armed
  unsigned kinds = 0;      // bits by Kind
  long first = 0, count = 0;
  int error = 0;
  const char *code_begin = nullptr, *code_end = nullptr;  // of the library whose workspaces count
} plan;
std::atomic<long> calls{0}, faults{0};
char first_fault[4200], notes[4096];  // `notes` is the file into which the first fault goes if it is KILL

[[noreturn]] void die() {
  if (const int file = static_cast<int>(syscall(SYS_openat, AT_FDCWD, notes, O_WRONLY | O_CREAT, 0644));
      file >= 0)
    syscall(SYS_write, file, first_fault, strlen(first_fault));
  kill(getpid(), SIGKILL);
  _exit(1);
}

// The error with which this call is to fail, 0 for none. With KILL the process ends here, or half-way in a write.
int fault(Kind kind, const char* path) {
  const long number = calls.fetch_add(1) + 1;
  if (number < plan.first || number - plan.first >= plan.count) return 0;
  if (faults.fetch_add(1) == 0) snprintf(first_fault, sizeof first_fault, "%s %s", kNames[kind], path);
  if (plan.error == KILL && kind != WRITE) die();
  return plan.error;
}

bool counted(Kind kind) { return plan.root_length && plan.kinds >> kind & 1; }

bool inside(const char* path) {
  return !strncmp(path, plan.root, plan.root_length) &&
         (path[plan.root_length] == '/' || path[plan.root_length] == 0);
}

// The error of a call on an open file; 0 for none.
int fault_of(Kind kind, int descriptor) {
  if (!counted(kind)) return 0;
  const int before = errno;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length <= 0) return 0;
  path[length] = 0;
  return inside(path) ? fault(kind, path) : 0;
}

int fault_at(Kind kind, int directory, const char* name) {
  if (!counted(kind) || !name) return 0;
  char path[8400] = "";
  if (name[0] == '/') {
    snprintf(path, sizeof path, "%s", name);
  } else {
    const int before = errno;
    char link[64], base[4096];
    if (directory == AT_FDCWD)
      snprintf(link, sizeof link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    const ssize_t length = readlink(link, base, sizeof base - 1);
    errno = before;
    if (length <= 0) return 0;
    base[length] = 0;
    snprintf(path, sizeof path, "%s/%s", base, name);
  }
  return inside(path) ? fault(kind, path) : 0;
}

bool fault_of_memory(Kind kind, size_t bytes) {
  char size[32];
  snprintf(size, sizeof size, "%zu", bytes);
  return fault(kind, size) != 0;
}

bool of_our_code(const void* caller) {
  const char* code = static_cast<const char*>(caller);
  return code >= plan.code_begin && code < plan.code_end;
}

template <class Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

// How many bytes of a write are to be written; -1 and errno if it fails. A write of one byte cannot be short.
ssize_t allowed(int descriptor, const void* data, size_t size) {
  const int error = size ? fault_of(WRITE, descriptor) : 0;  // click tries streams by writing nothing
  if (error == KILL) {
    syscall(SYS_write, descriptor, data, size / 2);
    die();
  }
  if (error == SHORT_WRITE) return size > 1 ? static_cast<ssize_t>(size / 2) : static_cast<ssize_t>(size);
  if (error == 0) return static_cast<ssize_t>(size);
  errno = error;
  return -1;
}

}  // namespace

#define NEXT(name) static const auto real = next<decltype(name)>(#name)
#define FAIL_IF(expression, result)     \
  if (const int error = (expression)) { \
    errno = error;                      \
    return result;                      \
  }

extern "C" {

void fault_arm(const char* root, unsigned kinds, long first, long count, int error) {
  calls = faults = 0;
  first_fault[0] = 0;
  snprintf(plan.root, sizeof plan.root, "%s", root);
  plan.kinds = kinds, plan.first = first, plan.count = count, plan.error = error;
  plan.root_length = strlen(plan.root);
}
void fault_notes(const char* path) { snprintf(notes, sizeof notes, "%s", path); }
void fault_code(const char* begin, const char* end) { plan.code_begin = begin, plan.code_end = end; }
void fault_disarm() { plan.root_length = 0; }
long fault_calls() { return calls; }
long fault_count() { return faults; }
const char* fault_first() { return first_fault; }

static int open_kind(int flags) { return flags & O_CREAT ? CREATE : OPEN; }

#define DEFINE_OPEN(name)                                                         \
  int name(const char* path, int flags, ...) {                                    \
    va_list rest;                                                                 \
    va_start(rest, flags);                                                        \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                                 \
    NEXT(name);                                                                   \
    FAIL_IF(fault_at(static_cast<Kind>(open_kind(flags)), AT_FDCWD, path), -1)    \
    return real(path, flags, mode);                                               \
  }
DEFINE_OPEN(open)
DEFINE_OPEN(open64)
#define DEFINE_OPENAT(name)                                                       \
  int name(int directory, const char* path, int flags, ...) {                     \
    va_list rest;                                                                 \
    va_start(rest, flags);                                                        \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                                 \
    NEXT(name);                                                                   \
    FAIL_IF(fault_at(static_cast<Kind>(open_kind(flags)), directory, path), -1)   \
    return real(directory, path, flags, mode);                                    \
  }
DEFINE_OPENAT(openat)
DEFINE_OPENAT(openat64)

ssize_t read(int descriptor, void* data, size_t size) {
  NEXT(read);
  FAIL_IF(fault_of(READ, descriptor), -1)
  return real(descriptor, data, size);
}
ssize_t pread(int descriptor, void* data, size_t size, off_t offset) {
  NEXT(pread);
  FAIL_IF(fault_of(READ, descriptor), -1)
  return real(descriptor, data, size, offset);
}
ssize_t pread64(int descriptor, void* data, size_t size, off64_t offset) {
  NEXT(pread64);
  FAIL_IF(fault_of(READ, descriptor), -1)
  return real(descriptor, data, size, offset);
}
ssize_t readv(int descriptor, const iovec* parts, int count) {
  NEXT(readv);
  FAIL_IF(fault_of(READ, descriptor), -1)
  return real(descriptor, parts, count);
}

ssize_t write(int descriptor, const void* data, size_t size) {
  NEXT(write);
  const ssize_t part = allowed(descriptor, data, size);
  return part < 0 ? -1 : real(descriptor, data, static_cast<size_t>(part));
}
ssize_t pwrite(int descriptor, const void* data, size_t size, off_t offset) {
  NEXT(pwrite);
  const ssize_t part = allowed(descriptor, data, size);
  return part < 0 ? -1 : real(descriptor, data, static_cast<size_t>(part), offset);
}
ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t offset) {
  NEXT(pwrite64);
  const ssize_t part = allowed(descriptor, data, size);
  return part < 0 ? -1 : real(descriptor, data, static_cast<size_t>(part), offset);
}
ssize_t writev(int descriptor, const iovec* parts, int count) {
  NEXT(writev);
  if (allowed(descriptor, nullptr, 1) < 0) return -1;
  return real(descriptor, parts, count);
}
ssize_t sendfile(int out, int in, off_t* offset, size_t size) {
  NEXT(sendfile);
  const ssize_t part = allowed(out, nullptr, size);
  return part < 0 ? -1 : real(out, in, offset, static_cast<size_t>(part));
}
ssize_t sendfile64(int out, int in, off64_t* offset, size_t size) {
  NEXT(sendfile64);
  const ssize_t part = allowed(out, nullptr, size);
  return part < 0 ? -1 : real(out, in, offset, static_cast<size_t>(part));
}
int fsync(int descriptor) {
  NEXT(fsync);
  FAIL_IF(fault_of(FSYNC, descriptor), -1)
  return real(descriptor);
}
int fdatasync(int descriptor) {
  NEXT(fdatasync);
  FAIL_IF(fault_of(FSYNC, descriptor), -1)
  return real(descriptor);
}

int rename(const char* from, const char* to) {
  NEXT(rename);
  FAIL_IF(fault_at(RENAME, AT_FDCWD, to), -1)
  return real(from, to);
}
int renameat(int from_directory, const char* from, int to_directory, const char* to) {
  NEXT(renameat);
  FAIL_IF(fault_at(RENAME, to_directory, to), -1)
  return real(from_directory, from, to_directory, to);
}
int mkdir(const char* path, mode_t mode) {
  NEXT(mkdir);
  FAIL_IF(fault_at(MKDIR, AT_FDCWD, path), -1)
  return real(path, mode);
}
int mkdirat(int directory, const char* path, mode_t mode) {
  NEXT(mkdirat);
  FAIL_IF(fault_at(MKDIR, directory, path), -1)
  return real(directory, path, mode);
}
int unlink(const char* path) {
  NEXT(unlink);
  FAIL_IF(fault_at(UNLINK, AT_FDCWD, path), -1)
  return real(path);
}
int unlinkat(int directory, const char* path, int flags) {
  NEXT(unlinkat);
  FAIL_IF(fault_at(UNLINK, directory, path), -1)
  return real(directory, path, flags);
}
int rmdir(const char* path) {
  NEXT(rmdir);
  FAIL_IF(fault_at(UNLINK, AT_FDCWD, path), -1)
  return real(path);
}
DIR* opendir(const char* path) {
  NEXT(opendir);
  FAIL_IF(fault_at(LIST, AT_FDCWD, path), nullptr)
  return real(path);
}
DIR* fdopendir(int descriptor) {
  NEXT(fdopendir);
  FAIL_IF(fault_of(LIST, descriptor), nullptr)
  return real(descriptor);
}
void* mmap(void* address, size_t size, int protection, int flags, int descriptor, off_t offset) {
  NEXT(mmap);
  if (!(flags & MAP_ANONYMOUS)) FAIL_IF(fault_of(MAP, descriptor), MAP_FAILED)
  return real(address, size, protection, flags, descriptor, offset);
}
void* mmap64(void* address, size_t size, int protection, int flags, int descriptor, off64_t offset) {
  NEXT(mmap64);
  if (!(flags & MAP_ANONYMOUS)) FAIL_IF(fault_of(MAP, descriptor), MAP_FAILED)
  return real(address, size, protection, flags, descriptor, offset);
}

// PyTorch's tensors on the CPU
int posix_memalign(void** result, size_t alignment, size_t size) {
  NEXT(posix_memalign);
  if (size >= kSmall && counted(TENSOR) && fault_of_memory(TENSOR, size)) return ENOMEM;
  return real(result, alignment, size);
}
// Our kernels' temporary memory
void* aligned_alloc(size_t alignment, size_t size) {
  NEXT(aligned_alloc);
  if (counted(WORKSPACE) && of_our_code(__builtin_return_address(0)) && fault_of_memory(WORKSPACE, size)) {
    errno = ENOMEM;
    return nullptr;
  }
  return real(alignment, size);
}

}  // extern "C"

void* operator new(size_t size) {
  if (counted(WORKSPACE) && of_our_code(__builtin_return_address(0)) && fault_of_memory(WORKSPACE, size))
    throw std::bad_alloc();
  if (void* memory = malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
void* operator new[](size_t size) {
  if (counted(WORKSPACE) && of_our_code(__builtin_return_address(0)) && fault_of_memory(WORKSPACE, size))
    throw std::bad_alloc();
  if (void* memory = malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
