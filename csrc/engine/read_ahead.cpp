#include "engine/read_ahead.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <system_error>

#include "base/memory.h"
#include "base/thread_pool.h"

namespace kimi {
namespace {

constexpr uint64_t kPiece = uint64_t{8} << 20;

}  // namespace

ReadAhead::ReadAhead(std::vector<Range> ranges) : ranges_(std::move(ranges)), fork_generation_(fork_generation()) {
  uint64_t total = 0;
  for (const Range& range : ranges_) total += range.size;
  // Pages that are cached already count as available, so this refuses only what would push itself out again.
  if (total == 0 || total > memory_info().available) return;
  try {
    thread_ = std::make_unique<std::thread>([this] { run(); });
  } catch (const std::system_error&) {  // no thread to be had: the pages come when they are touched
  }
}

ReadAhead::~ReadAhead() {
  stop_.store(true, std::memory_order_relaxed);
  if (!thread_) return;
  if (fork_generation_ == fork_generation())
    thread_->join();
  else
    static_cast<void>(thread_.release());  // it runs in the parent
}

void ReadAhead::run() noexcept {
  const uintptr_t page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident(kPiece / page + 2);
  for (const Range& range : ranges_) {
    for (uint64_t offset = 0; offset < range.size; offset += kPiece) {
      if (stop_.load(std::memory_order_relaxed)) return;
      const uintptr_t first = (reinterpret_cast<uintptr_t>(range.data) + offset) / page * page;
      const uintptr_t last = reinterpret_cast<uintptr_t>(range.data) + std::min(range.size, offset + kPiece);
      void* start = reinterpret_cast<void*>(first);
      const size_t size = last - first, pages = (size + page - 1) / page;
      if (mincore(start, size, resident.data()) == 0 &&
          std::all_of(resident.begin(), resident.begin() + static_cast<std::ptrdiff_t>(pages), [](unsigned char r) { return r & 1; }))
        continue;
      madvise(start, size, MADV_WILLNEED);
    }
  }
}

}  // namespace kimi
