#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {

CpuBackend::CpuBackend(const CpuOptions& options, int n_threads, const KernelTable& kernels)
    : kernels_(kernels),
      float_activations_(options.float_activations),
      pool_(n_threads),
      scratch_(static_cast<size_t>(n_threads)) {}

}  // namespace kimi::cpu
