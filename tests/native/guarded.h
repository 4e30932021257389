// Memory that ends where an inaccessible page begins: touching one byte beyond it ends the process.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

class GuardedBuffer {
 public:
  explicit GuardedBuffer(int64_t bytes) {
    const int64_t page = sysconf(_SC_PAGESIZE);
    const int64_t usable = (bytes + page - 1) / page * page;
    mapped_ = usable + page;
    void* start = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED) throw std::bad_alloc();
    start_ = static_cast<char*>(start);
    if (mprotect(start_ + usable, page, PROT_NONE) != 0) throw std::bad_alloc();
    data_ = start_ + usable - bytes;
  }
  GuardedBuffer(const void* from, int64_t bytes) : GuardedBuffer(bytes) {
    if (bytes > 0) std::memcpy(data_, from, bytes);
  }
  ~GuardedBuffer() { munmap(start_, mapped_); }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() { return data_; }

 private:
  char* start_;
  char* data_;
  int64_t mapped_;
};
