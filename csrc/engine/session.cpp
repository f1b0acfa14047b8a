#include "engine/session.h"

#include <algorithm>

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

namespace {

int64_t checked_context(const Engine& engine, int64_t n_ctx) {
  KIMI_CHECK(n_ctx >= 1 && n_ctx <= engine.text().max_position_embeddings, ErrorKind::bad_request, "request.n_ctx",
             "n_ctx is %lld, expected 1 to %lld (the model's context)", static_cast<long long>(n_ctx),
             static_cast<long long>(engine.text().max_position_embeddings));
  return n_ctx;
}

std::shared_ptr<PagePool> pool_for(const Engine& engine, int64_t n_ctx, std::optional<KvType> kv_type,
                                   std::shared_ptr<PagePool> pool) {
  if (!pool) return engine.pool_for_context(kv_type, n_ctx);
  KIMI_CHECK(!kv_type || *kv_type == pool->layout().type, ErrorKind::bad_request, "request.kv_type",
             "kv_type is another than that of the pool: leave it at auto");
  return pool;
}

}  // namespace

Session::Session(std::shared_ptr<Engine> engine, int64_t n_ctx, std::optional<KvType> kv_type, std::shared_ptr<PagePool> pool,
                 int32_t adapter)
    : engine_(std::move(engine)),
      n_ctx_(checked_context(*engine_, n_ctx)),
      adapter_(adapter),
      table_(pool_for(*engine_, n_ctx, kv_type, std::move(pool))) {
  engine_->check_adapter(adapter);
}

void Session::truncate(int64_t n_past) {
  engine_->between_calls([&] {
    check_free();
    KIMI_CHECK(n_past >= 0 && n_past <= n_past_, ErrorKind::bad_request, "request.n_past",
               "cannot truncate to %lld tokens, the session has %lld", static_cast<long long>(n_past),
               static_cast<long long>(n_past_));
    if (n_past != n_past_) logits_.clear();
    drop(n_past);
  });
}

std::vector<PageRef> Session::pages() const {
  std::vector<PageRef> found;
  engine_->between_calls([&] {
    check_free();
    found = table_.pages();
  });
  return found;
}

void Session::adopt(std::span<const PageRef> pages, int64_t n_past) {
  engine_->between_calls([&] {
    check_free();
    KIMI_CHECK(n_past_ == 0, ErrorKind::bad_request, "request.pages",
               "the session holds %lld positions: only an empty one adopts", static_cast<long long>(n_past_));
    KIMI_CHECK(n_past >= 0 && n_past <= n_ctx_, ErrorKind::bad_request, "request.n_past",
               "n_past is %lld, expected 0 to n_ctx, %lld", static_cast<long long>(n_past), static_cast<long long>(n_ctx_));
    const auto n_pages = static_cast<int64_t>(pages.size());
    KIMI_CHECK(n_pages == (n_past + kPagePositions - 1) / kPagePositions, ErrorKind::bad_request, "request.pages",
               "%lld pages were given for %lld positions, expected one for each %lld", static_cast<long long>(n_pages),
               static_cast<long long>(n_past), static_cast<long long>(kPagePositions));
    for (int64_t i = 0; i < n_pages; ++i) {
      const Page& page = *pages[static_cast<size_t>(i)];
      const int64_t needed = std::min(kPagePositions, n_past - i * kPagePositions);
      KIMI_CHECK(page.pool() == table_.pool(), ErrorKind::bad_request, "request.pages", "page %lld belongs to another pool",
                 static_cast<long long>(i));
      KIMI_CHECK(page.n_filled() >= needed, ErrorKind::bad_request, "request.pages",
                 "page %lld holds %lld rows, %lld positions need %lld of it", static_cast<long long>(i),
                 static_cast<long long>(page.n_filled()), static_cast<long long>(n_past), static_cast<long long>(needed));
    }
    table_.share(pages);
    n_past_ = n_past;
    n_pages_ = n_pages;
    logits_.clear();
  });
}

std::unique_ptr<Session> Session::fork() const {
  auto copy = std::make_unique<Session>(engine_, n_ctx_, std::nullopt, table_.pool(), adapter_);
  engine_->between_calls([&] {
    check_free();
    copy->table_.share(table_.pages());
    copy->n_past_ = n_past_.load();
    copy->n_pages_ = n_pages_.load();
    copy->logits_ = logits_;
  });
  return copy;
}

void Session::check_room(int64_t n) const {
  KIMI_CHECK(n > 0, ErrorKind::bad_request, "request.empty", "a step needs at least one token");
  KIMI_CHECK(n <= n_ctx_ - n_past_, ErrorKind::context_full, "context.full",
             "%lld new tokens after %lld do not fit the context of %lld: use a larger context (n_ctx), a shorter text or smaller "
             "pictures",
             static_cast<long long>(n), static_cast<long long>(n_past()), static_cast<long long>(n_ctx_));
}

void Session::check_free() const {
  KIMI_CHECK(!busy_, ErrorKind::bad_request, "session.busy",
             "a prefill task of this session is not done: advance it to its end or cancel it first");
}

void Session::reserve(int64_t n) {
  table_.reserve(n_past_, n);
  n_pages_ = static_cast<int64_t>(table_.pages().size());
}

void Session::advance(int64_t n) {
  table_.wrote(n_past_, n);
  n_past_ += n;
}

void Session::drop(int64_t n_past) {
  table_.truncate(n_past);
  n_pages_ = static_cast<int64_t>(table_.pages().size());
  n_past_ = n_past;
}

}  // namespace kimi
