#include "base/cpu_count.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <set>
#include <string>
#include <utility>

namespace kimi {
namespace {

int read_int(const std::string& path, int otherwise) {
  std::ifstream file(path);
  int value;
  return file >> value ? value : otherwise;
}

double quota_v2(const std::string& folder) {
  std::ifstream file(folder + "/cpu.max");
  std::string quota;
  double period;
  if (!(file >> quota >> period) || quota == "max" || period <= 0) return 0;
  return std::atof(quota.c_str()) / period;
}

// The tightest limit on the way from our own control group up to the root.
double cgroup_quota() {
  std::ifstream groups("/proc/self/cgroup");
  std::string line, path = "/";
  while (std::getline(groups, line))
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  double least = 0;
  for (;;) {
    const double quota = quota_v2("/sys/fs/cgroup" + path);
    if (quota > 0 && (least == 0 || quota < least)) least = quota;
    if (path.empty() || path == "/") break;
    path = path.substr(0, path.rfind('/'));
  }
  if (least > 0) return least;
  const std::string v1 = "/sys/fs/cgroup/cpu/cpu.cfs_";
  const int quota = read_int(v1 + "quota_us", -1), period = read_int(v1 + "period_us", 0);
  return quota > 0 && period > 0 ? static_cast<double>(quota) / period : 0;
}

}  // namespace

CpuCount count_cpus() {
  CpuCount count{};
  count.online = std::max(1, static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)));
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) {
    count.affinity = count.physical_cores = count.online;
  } else {
    count.affinity = std::max(1, CPU_COUNT(&set));
    std::set<std::pair<int, int>> cores;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(cpu, &set)) continue;
      const std::string topology = "/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/";
      cores.emplace(read_int(topology + "physical_package_id", 0), read_int(topology + "core_id", cpu));
    }
    count.physical_cores = std::max<int>(1, static_cast<int>(cores.size()));
  }
  count.quota = cgroup_quota();
  count.threads = count.physical_cores;
  if (count.quota > 0) count.threads = std::clamp(static_cast<int>(std::floor(count.quota + 1e-6)), 1, count.threads);
  return count;
}

}  // namespace kimi
