// How many threads are worth having here.
#pragma once

namespace kimi {

struct CpuCount {
  int online;          // processors of the machine
  int affinity;        // processors this process may run on
  int physical_cores;  // distinct cores among those
  double quota;        // CPUs that the control group grants; 0: no limit
  int threads;         // the default: physical cores, but no more than the quota, at least 1
};
CpuCount count_cpus();

}  // namespace kimi
