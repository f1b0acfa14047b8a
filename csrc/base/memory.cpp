#include "base/memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace kimi {
namespace {

uint64_t read_number(const std::string& path) {  // 0 when absent or "max"
  std::ifstream file(path);
  uint64_t value;
  return file >> value ? value : 0;
}

}  // namespace

MemoryInfo memory_info() {
  MemoryInfo info{};
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  uint64_t kib;
  while (meminfo >> key >> kib) {
    std::getline(meminfo, unit);
    if (key == "MemTotal:") info.total = kib << 10;
    if (key == "MemAvailable:") info.available = kib << 10;
  }
  std::ifstream groups("/proc/self/cgroup");
  std::string line, path = "/";
  while (std::getline(groups, line))
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  for (;;) {
    const std::string folder = "/sys/fs/cgroup" + path;
    const uint64_t limit = read_number(folder + "/memory.max"), used = read_number(folder + "/memory.current");
    if (limit) {
      // Page cache that the group holds (our own mapped weights, above all) is given back under pressure.
      uint64_t file_bytes = 0, value;
      std::ifstream stat(folder + "/memory.stat");
      while (stat >> key >> value)
        if (key == "file") file_bytes = value;
      const uint64_t hard = used > file_bytes ? used - file_bytes : 0;
      info.cgroup_limit = info.cgroup_limit ? std::min(info.cgroup_limit, limit) : limit;
      info.available = std::min(info.available, limit > hard ? limit - hard : 0);
    }
    if (path.empty() || path == "/") break;
    path = path.substr(0, path.rfind('/'));
  }
  return info;
}

}  // namespace kimi
