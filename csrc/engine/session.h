// Session: one mutable sequence of positions with its cache. Slice: what a step appends to it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"
#include "model/kv_cache.h"

namespace kimi {

class Session {
 public:
  // n_ctx 1 to the model's context length.
  Session(std::shared_ptr<Engine> engine, int64_t n_ctx, std::optional<KvType> kv_type);
  int64_t n_past() const { return n_past_; }
  int64_t n_ctx() const { return cache_.n_ctx(); }
  const KvCache& cache() const { return cache_; }
  Engine& engine() { return *engine_; }
  const std::shared_ptr<Engine>& engine_ptr() const { return engine_; }
  const std::vector<float>& logits() const { return logits_; }  // of the last position; empty before the first step
  void truncate(int64_t n_past);

 private:
  friend class Engine;
  static int64_t checked_context(const Engine& engine, int64_t n_ctx);
  std::shared_ptr<Engine> engine_;
  KvCache cache_;
  int64_t n_past_ = 0;
  std::vector<float> logits_;
};

// A run of new positions: ids [n], or embeddings [n, hidden_size].
struct Part {
  const int32_t* ids = nullptr;
  const float* embeddings = nullptr;
  int64_t n = 0;
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
