// Construction and the operations on single rows.
#include "backend/cpu/cpu_backend.h"

#include <cstring>

#include "base/cpu_count.h"

namespace kimi {

std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options) {
  const int n_threads = options.n_threads;
  constexpr int kMaxThreads = 1024;
  KIMI_CHECK(n_threads >= 0 && n_threads <= kMaxThreads, ErrorKind::bad_request, "request.n_threads",
             "n_threads is %d, expected 1 to %d, or 0 to choose by the processors at hand", n_threads, kMaxThreads);
  return std::make_unique<cpu::CpuBackend>(options, n_threads > 0 ? n_threads : count_cpus().threads,
                                           cpu::select_kernels(options.isa.c_str()));
}

namespace cpu {

CpuBackend::CpuBackend(const CpuOptions& options, int n_threads, const KernelTable& kernels)
    : kernels_(kernels),
      float_activations_(options.float_activations),
      name_(std::string("cpu ") + kernels.name),
      pool_(n_threads),
      scratch_(static_cast<size_t>(n_threads)) {}

void CpuBackend::embed(const Matrix& table, const int32_t* ids, int64_t n, float* out) {
  for_rows(n, table.cols, [&](int64_t i) {
    kernels_.decode_row[static_cast<int>(table.type)](table.data + ids[i] * table.row_bytes, out + i * table.cols, table.cols);
  });
}

void CpuBackend::rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) {
  for_rows(n, dim, [&](int64_t i) { kernels_.rms_norm(x + i * dim, weight, eps, dim, out + i * dim); });
}

void CpuBackend::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                            float* out) {
  for_rows(n, dim, [&](int64_t i) { kernels_.layer_norm(x + i * dim, weight, bias, eps, dim, out + i * dim); });
}

void CpuBackend::add(const float* x, int64_t n, float* out) {
  constexpr int64_t kRow = 4096;
  for_rows((n + kRow - 1) / kRow, kRow,
           [&](int64_t i) { kernels_.add_scaled(x + i * kRow, 1.0f, std::min(kRow, n - i * kRow), out + i * kRow); });
}

}  // namespace cpu
}  // namespace kimi
