#include "backend/cpu/cpu_options.h"

#include <charconv>

#include "backend/cpu/cpu_backend.h"
#include "base/cpu_count.h"
#include "base/error.h"

namespace kimi {
namespace {

constexpr int kMaxThreads = 1024;

}  // namespace

CpuOptions CpuOptions::from(const BackendOptions& options) {
  check_options("cpu", options, {"activations", "isa", "n_threads"});
  CpuOptions found;
  if (const auto isa = options.find("isa"); isa != options.end()) found.isa = isa->second;
  if (const auto activations = options.find("activations"); activations != options.end()) {
    const std::string& value = activations->second;
    KIMI_CHECK(value == "int8" || value == "float", ErrorKind::bad_request, "request.activations",
               "activations is \"%s\", expected int8 or float", value.c_str());
    found.float_activations = value == "float";
  }
  if (const auto threads = options.find("n_threads"); threads != options.end()) {
    const std::string& value = threads->second;
    const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), found.n_threads);
    KIMI_CHECK(error == std::errc() && end == value.data() + value.size(), ErrorKind::bad_request, "request.n_threads",
               "n_threads is \"%s\", expected 1 to %d, or 0 to choose by the processors at hand", value.c_str(), kMaxThreads);
  }
  return found;
}

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  const int n_threads = options.n_threads;
  KIMI_CHECK(n_threads >= 0 && n_threads <= kMaxThreads, ErrorKind::bad_request, "request.n_threads",
             "n_threads is %d, expected 1 to %d, or 0 to choose by the processors at hand", n_threads, kMaxThreads);
  return std::make_unique<cpu::CpuBackend>(options, n_threads > 0 ? n_threads : count_cpus().threads,
                                           cpu::select_kernels(options.isa.c_str()));
}

std::unique_ptr<Backend> make_cpu(const BackendOptions& options) { return make_cpu_backend(CpuOptions::from(options)); }

}  // namespace kimi
