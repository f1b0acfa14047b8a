#include "engine/importance.h"

#include <algorithm>
#include <functional>

#include "base/error.h"

namespace kimi {
namespace {

bool ends_with(const std::string& text, const char* end) {
  const std::string suffix(end);
  return text.size() >= suffix.size() && text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
}

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

Importance::Importance(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {
  add(engine_->file());
  if (engine_->vision_file() && engine_->vision_file() != &engine_->file()) add(*engine_->vision_file());
  std::sort(entries_.begin(), entries_.end(), [](const Entry& a, const Entry& b) { return std::less<>()(a.begin, b.begin); });
  engine_->observe(nullptr, this);
}

Importance::~Importance() { engine_->observe(this, nullptr); }

// Memory for all of them is taken here, where it may fail: see() must not.
void Importance::add(const gguf::File& file) {
  const int64_t heads = engine_->text().num_attention_heads;
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    if (!tensor.data || tensor.n_dims < 2 || tensor.n_dims > 3 || !ends_with(tensor.name, ".weight")) continue;
    Entry entry;
    entry.seen.name = tensor.name;
    entry.seen.n_cols = tensor.ne[0];
    entry.heads_of_kv_b = ends_with(tensor.name, ".attn_kv_b.weight") && tensor.ne[1] % heads == 0;
    entry.seen.n_matrices = entry.heads_of_kv_b ? heads : tensor.ne[2];
    entry.begin = tensor.data;
    entry.end = tensor.data + tensor.n_bytes;
    entry.stack_bytes = static_cast<int64_t>(tensor.n_bytes) / entry.seen.n_matrices;
    entry.seen.sums.assign(static_cast<size_t>(entry.seen.n_matrices * entry.seen.n_cols), 0.0);
    entry.seen.counts.assign(static_cast<size_t>(entry.seen.n_matrices), 0);
    entries_.push_back(std::move(entry));
  }
}

Importance::Entry* Importance::find(const uint8_t* data, int64_t* matrix) noexcept {
  const auto after = std::upper_bound(entries_.begin(), entries_.end(), data,
                                      [](const uint8_t* at, const Entry& e) { return std::less<>()(at, e.begin); });
  if (after == entries_.begin()) return nullptr;
  Entry& entry = *(after - 1);
  if (!std::less<>()(data, entry.end)) return nullptr;
  const int64_t offset = data - entry.begin;
  *matrix = offset / entry.stack_bytes;
  // Two matrices in one tensor (gate and up, q k and v) have one input: the first of them tells it.
  if (offset % entry.stack_bytes != 0 && !entry.heads_of_kv_b) return nullptr;
  return &entry;
}

void Importance::see(const ProductInput& input, int64_t first, int64_t n_cols) noexcept {
  int64_t matrix = 0;
  Entry* entry = find(input.w->data, &matrix);
  if (!entry || input.w->cols != entry->seen.n_cols) return;
  double* sums = entry->seen.sums.data() + matrix * entry->seen.n_cols + first;
  for (int64_t i = 0; i < input.n; ++i) {
    const float* x = input.x + (input.rows ? input.rows[i] : i) * input.stride + first;
    for (int64_t c = 0; c < n_cols; ++c) sums[c] += static_cast<double>(x[c]) * static_cast<double>(x[c]);
  }
  if (first == 0) entry->seen.counts[static_cast<size_t>(matrix)] += input.n;
}

std::vector<InputSums> Importance::totals(bool with_sums) const {
  std::vector<InputSums> found;
  engine_->between_calls([&] {
    for (const Entry& entry : entries_) {
      const InputSums& seen = entry.seen;
      if (std::all_of(seen.counts.begin(), seen.counts.end(), [](int64_t n) { return n == 0; })) continue;
      InputSums& one = found.emplace_back(InputSums{seen.name, seen.n_matrices, seen.n_cols, {}, seen.counts});
      if (with_sums) one.sums = seen.sums;
      if (entry.heads_of_kv_b) fold(&one);
    }
  });
  return found;
}

}  // namespace kimi
