// The text decoder: layers of latent attention and experts over a batch of slices.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/weights.h"

namespace kimi {

// New positions of one session: token ids or embeddings, in order.
struct DecoderSlice {
  KvCache* cache;
  int64_t past;                 // positions in the cache before
  int64_t n;                    // new positions
  int64_t n_logits;             // of the last so many positions
  float* logits = nullptr;      // [n_logits, vocab_size]
};

class Decoder {
 public:
  Decoder(const TextConfig& config, const TextWeights& weights) : config_(config), weights_(weights) {}

  // The batch's rows [n, hidden_size], to be filled by the caller before forward().
  float* input(int64_t n) {
    x_.resize(static_cast<size_t>(n * config_.hidden_size));
    return x_.data();
  }
  void embed(Backend& backend, const int32_t* ids, int64_t n, float* out) const { backend.embed(weights_.token_embd, ids, n, out); }
  // Runs all layers over input(), writes the caches and the logits.
  void forward(Backend& backend, const std::vector<DecoderSlice>& slices, Rows rows);

 private:
  void attention(Backend& backend, const DecoderLayerWeights& w, const std::vector<AttentionSlice>& slices, int64_t n, int64_t n_out, Rows rows);
  void feed_forward(Backend& backend, const DecoderLayerWeights& w, bool dense, int64_t n, Rows rows);
  // Moves the rows that logits are wanted of together. -> how many
  int64_t keep_wanted(const std::vector<DecoderSlice>& slices);
  void logits(Backend& backend, const std::vector<DecoderSlice>& slices);

  const TextConfig& config_;
  const TextWeights& weights_;
  AlignedBuffer<float> x_, normed_, logits_;
};

// Slices of up to this many new tokens stream the weights; larger ones unpack them (see Rows).
constexpr int64_t kFewRows = 4;

}  // namespace kimi
