// What the CPU backend can be asked for.
#pragma once
#include <memory>
#include <string>

#include "backend/registry.h"

namespace kimi {

struct CpuOptions {
  int n_threads = 0;               // 0: count_cpus().threads
  std::string isa = "auto";        // or "generic", "avx2", "avx512"
  bool float_activations = false;  // never round activations to int8: slower, exact on the file's own weights

  // "n_threads", "isa", "activations" (int8 or float). Throws Error(bad_request).
  static CpuOptions from(const BackendOptions& options);
};

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace kimi
