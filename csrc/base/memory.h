// How much memory this process may still take.
#pragma once
#include <cstdint>

namespace kimi {

struct MemoryInfo {
  uint64_t total;         // bytes of RAM
  uint64_t available;     // MemAvailable, or what the control group leaves, whichever is less
  uint64_t cgroup_limit;  // 0: none
};
MemoryInfo memory_info();

}  // namespace kimi
