#include "engine/read_ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "base/memory.h"
#include "base/thread_pool.h"

namespace kimi {
namespace {

constexpr uint64_t kPiece = uint64_t{8} << 20;
constexpr int kThreads = 2;  // each waits for its own piece: with one the disk would pause between two

// Into the page cache and the page table at once. By faults and not by MADV_WILLNEED where the system knows how: that one
// fills the cache with small pages, faults in a mapping that asked for large ones with large ones.
void read_in(const uint8_t* data, uint64_t size) {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE)), begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const size_t from_begin = reinterpret_cast<uintptr_t>(data) + size - begin;
#ifdef MADV_POPULATE_READ
  if (madvise(reinterpret_cast<void*>(begin), from_begin, MADV_POPULATE_READ) == 0 || errno != EINVAL) return;
#endif
  madvise(reinterpret_cast<void*>(begin), from_begin, MADV_WILLNEED);
}

}  // namespace

ReadAhead::ReadAhead(const std::vector<Range>& ranges) : fork_generation_(fork_generation()) {
  uint64_t total = 0;
  for (const Range& range : ranges) total += range.size;
  // Pages that are cached already count as available, so this refuses only what would push itself out again.
  if (total == 0 || total > memory_info().available) return;
  for (const Range& range : ranges)
    for (uint64_t offset = 0; offset < range.size; offset += kPiece)
      pieces_.push_back({range.data + offset, std::min(kPiece, range.size - offset)});
  try {
    for (int i = 0; i < kThreads; ++i) threads_.push_back(std::make_unique<std::thread>([this] { run(); }));
  } catch (const std::system_error&) {  // no thread to be had: the pages come when they are touched
  }
}

ReadAhead::~ReadAhead() {
  stop_.store(true, std::memory_order_relaxed);
  for (std::unique_ptr<std::thread>& thread : threads_) {
    if (fork_generation_ == fork_generation())
      thread->join();
    else
      static_cast<void>(thread.release());  // it runs in the parent
  }
}

void ReadAhead::run() noexcept {
  while (!stop_.load(std::memory_order_relaxed)) {
    const size_t piece = next_.fetch_add(1, std::memory_order_relaxed);
    if (piece >= pieces_.size()) return;
    read_in(pieces_[piece].data, pieces_[piece].size);
  }
}

}  // namespace kimi
