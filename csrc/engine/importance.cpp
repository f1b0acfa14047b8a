#include "engine/importance.h"

#include <algorithm>

namespace kimi {
namespace {

// A stack over the same columns as one matrix.
void fold(InputSums* stack) {
  const size_t n_cols = static_cast<size_t>(stack->n_cols);
  for (size_t i = n_cols; i < stack->sums.size(); ++i) stack->sums[i % n_cols] += stack->sums[i];
  if (!stack->sums.empty()) stack->sums.resize(n_cols);
  for (size_t m = 1; m < stack->counts.size(); ++m) stack->counts[0] += stack->counts[m];
  stack->counts.resize(1);
  stack->n_matrices = 1;
}

}  // namespace

// Memory for all of them is taken here, where it may fail: see() must not.
Importance::Importance(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {
  for (const WeightInfo& weight : engine_->weights())
    seen_.push_back({weight.name, weight.n_matrices, weight.n_cols,
                     std::vector<double>(static_cast<size_t>(weight.n_matrices * weight.n_cols)),
                     std::vector<int64_t>(static_cast<size_t>(weight.n_matrices))});
  engine_->observe(nullptr, this);
}

Importance::~Importance() { engine_->observe(this, nullptr); }

void Importance::see(const ProductInput& input, int64_t first, int64_t n_cols) noexcept {
  const Matrix& w = *input.w;
  if (w.weight < 0) return;
  InputSums& seen = seen_[static_cast<size_t>(w.weight)];
  double* sums = seen.sums.data() + w.index * seen.n_cols + first;
  for (int64_t i = 0; i < input.n; ++i) {
    const float* x = input.x + (input.rows ? input.rows[i] : i) * input.stride + first;
    for (int64_t c = 0; c < n_cols; ++c) sums[c] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  }
  if (first == 0) seen.counts[static_cast<size_t>(w.index)] += input.n;
}

std::vector<InputSums> Importance::totals(bool with_sums) const {
  std::vector<InputSums> found;
  engine_->between_calls([&] {
    for (size_t i = 0; i < seen_.size(); ++i) {
      const InputSums& seen = seen_[i];
      if (std::all_of(seen.counts.begin(), seen.counts.end(), [](int64_t n) { return n == 0; })) continue;
      InputSums& one = found.emplace_back(InputSums{seen.name, seen.n_matrices, seen.n_cols, {}, seen.counts});
      if (with_sums) one.sums = seen.sums;
      if (engine_->weights()[i].is_one_matrix) fold(&one);
    }
  });
  return found;
}

}  // namespace kimi
