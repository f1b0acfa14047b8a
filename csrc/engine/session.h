// Session: one mutable sequence of positions with the pages of its cache. Slice: what a step appends to it.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"
#include "model/kv_pages.h"

namespace kimi {

// The calls that change a session, or look at its pages, wait for the engine's call under way.
class Session {
 public:
  // n_ctx: 1 to the model's context length; the most positions, not what is allocated. pool: where its pages come from, of a
  // layout of this engine; nullptr: a pool of its own. adapter: whose side products are added to every row, or kNoAdapter; pages
  // that the session adopts were computed with the same.
  Session(std::shared_ptr<Engine> engine, int64_t n_ctx, std::optional<KvType> kv_type, std::shared_ptr<PagePool> pool = nullptr,
          int32_t adapter = kNoAdapter);
  int64_t n_past() const { return n_past_; }
  int64_t n_ctx() const { return n_ctx_; }
  int64_t kv_bytes() const { return n_pages_ * pool().layout().bytes(); }  // of the pages it refers to, shared ones too
  const std::shared_ptr<Engine>& engine_ptr() const { return engine_; }
  const PagePool& pool() const { return *table_.pool(); }
  const std::vector<float>& logits() const { return logits_; }  // of the last position; empty before the first step

  void truncate(int64_t n_past);
  // References to the pages of all positions; the last may hold more rows than count.
  std::vector<PageRef> pages() const;
  // The first n_past positions of these pages, in an empty session. Throws Error(bad_request, "request.pages").
  void adopt(std::span<const PageRef> pages, int64_t n_past);
  // A session with the same positions and logits, on the same pages.
  std::unique_ptr<Session> fork() const;
  // That n more positions fit. Throws Error(bad_request, "request.empty") for none, Error(context_full, "context.full").
  void check_room(int64_t n) const;

 private:
  friend class Engine;
  friend class ForwardTask;
  friend class PrefillTask;
  // For the engine's calls, which hold the engine: room for n more positions, that n have been computed, and that no more come.
  void reserve(int64_t n);
  void advance(int64_t n);
  void drop(int64_t n_past);
  void check_free() const;  // throws Error(bad_request, "session.busy")

  std::shared_ptr<Engine> engine_;
  const int64_t n_ctx_;
  const int32_t adapter_;
  PageTable table_;
  std::atomic<int64_t> n_past_ = 0, n_pages_ = 0;  // n_pages_: of the table
  std::vector<float> logits_, new_logits_;         // new_logits_: of the step under way
  bool busy_ = false;                              // a task is filling it
};

enum class Logits { none, last, all };

struct Slice {
  Session* session;
  std::vector<Part> parts;
  Logits want = Logits::last;
  float* logits = nullptr;       // [n or 1, vocab_size]; may be nullptr for `last`: they stay in the session
  std::vector<RowForm> forms{};  // [n] of the rows; empty: forms_of_pages
  int64_t n() const;
};

// The forms of n rows after n_past of a sequence in which no answer was given: pages that they fill whole are expanded.
std::vector<RowForm> forms_of_pages(int64_t n_past, int64_t n);

}  // namespace kimi
