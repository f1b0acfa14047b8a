// Shows inputs of products to an observer, cut by columns: a column's rows are seen in order by one thread, so that sums over
// them do not depend on the number of threads.
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kColumns = 256;

}  // namespace

void CpuBackend::show(const std::vector<ProductInput>& inputs) {
  std::vector<std::pair<const ProductInput*, int64_t>> chunks;  // input, first column
  for (const ProductInput& input : inputs)
    for (int64_t first = 0; first < input.w->cols; first += kColumns) chunks.emplace_back(&input, first);
  pool_.parallel_for(static_cast<int64_t>(chunks.size()), [&](int64_t chunk, int) {
    const auto& [input, first] = chunks[static_cast<size_t>(chunk)];
    observer_->see(*input, first, std::min(kColumns, input->w->cols - first));
  });
}

// Every head of a stack, head h with rows [h * n, (h + 1) * n) of x.
void CpuBackend::show_heads(const Matrix& stack, const float* x, int64_t n) {
  std::vector<Matrix> heads;
  std::vector<ProductInput> inputs;
  for (int64_t h = 0; h < stack.count; ++h) heads.push_back(stack.at(h));
  for (int64_t h = 0; h < stack.count; ++h)
    inputs.push_back({&heads[static_cast<size_t>(h)], x + h * n * stack.cols, n, stack.cols, nullptr});
  show(inputs);
}

}  // namespace kimi::cpu
