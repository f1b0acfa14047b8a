#include "engine/session.h"

#include <algorithm>

#include "backend/kv_view.h"
#include "base/error.h"

namespace kimi {

int64_t Slice::n() const {
  int64_t total = 0;
  for (const Part& part : parts) total += part.n;
  return total;
}

std::vector<RowForm> forms_of_pages(int64_t n_past, int64_t n) {
  std::vector<RowForm> forms(static_cast<size_t>(n), RowForm::absorbed);
  const int64_t first = (n_past + kPagePositions - 1) / kPagePositions * kPagePositions,
                end = (n_past + n) / kPagePositions * kPagePositions;
  if (first < end) std::fill(forms.begin() + (first - n_past), forms.begin() + (end - n_past), RowForm::expanded);
  return forms;
}

int64_t Session::checked_context(const Engine& engine, int64_t n_ctx) {
  KIMI_CHECK(n_ctx >= 1 && n_ctx <= engine.text().max_position_embeddings, ErrorKind::bad_request, "request.n_ctx",
             "n_ctx is %lld, expected 1 to %lld (the model's context)", static_cast<long long>(n_ctx),
             static_cast<long long>(engine.text().max_position_embeddings));
  return n_ctx;
}

Session::Session(std::shared_ptr<Engine> engine, int64_t n_ctx, std::optional<KvType> kv_type)
    : engine_(std::move(engine)),
      cache_(engine_->text().num_hidden_layers, checked_context(*engine_, n_ctx), engine_->text().kv_lora_rank,
             engine_->text().qk_rope_head_dim, kv_type.value_or(engine_->default_kv_type())) {}

void Session::truncate(int64_t n_past) {
  KIMI_CHECK(n_past >= 0 && n_past <= n_past_, ErrorKind::bad_request, "request.n_past",
             "cannot truncate to %lld tokens, the session has %lld", static_cast<long long>(n_past),
             static_cast<long long>(n_past_));
  if (n_past != n_past_) logits_.clear();
  n_past_ = n_past;
}

}  // namespace kimi
