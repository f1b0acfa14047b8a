// What the machine has: instruction sets, processors, memory.
#include <pybind11/stl.h>
#include <sys/utsname.h>

#include "base/cpu_count.h"
#include "base/isa.h"
#include "base/memory.h"
#include "bindings.h"

namespace py = pybind11;

namespace kimi {
namespace {

py::dict cpu_info() {
  const CpuCount cpus = count_cpus();
  const MemoryInfo memory = memory_info();
  py::dict d;
  d["online"] = cpus.online;
  d["affinity"] = cpus.affinity;
  d["physical_cores"] = cpus.physical_cores;
  d["quota"] = cpus.quota;
  d["threads"] = cpus.threads;
  d["memory_total"] = memory.total;
  d["memory_available"] = memory.available;
  d["memory_cgroup_limit"] = memory.cgroup_limit;
  utsname name{};
  uname(&name);
  d["machine"] = std::string(name.machine);
  return d;
}

py::list isa_rows() {
  py::list list;
  for (const Isa& isa : isas()) {
    py::dict d;
    d["name"] = isa.name;
    d["requires"] = isa.requires_features;
    d["supported"] = isa.supported;
    d["refusal"] = isa.refusal ? py::cast(isa.refusal) : py::none();
    list.append(d);
  }
  return list;
}

}  // namespace

void bind_machine(py::module_& m) {
  m.def("isas", isa_rows,
        "Instruction sets: name, requires, supported, and where it is not the refusal, which says why; best first.");
  m.def("cpu_info", cpu_info, "Processors and memory that this process may use.");
  m.def("cpu_count", [] { return count_cpus().threads; }, "The default number of threads.");
}

}  // namespace kimi
