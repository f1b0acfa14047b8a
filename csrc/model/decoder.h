// The text decoder: layers of latent attention and experts over a batch of slices.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_pages.h"
#include "model/weights.h"

namespace kimi {

// New positions of one session, all in one form: token ids or embeddings, in order.
struct DecoderSlice {
  const PageTable* cache;  // pages for all positions
  std::vector<int32_t> positions;  // ascending
  RowForm form;
  std::vector<float*> logits;  // [vocab_size] each, of the last positions
  int64_t n() const { return static_cast<int64_t>(positions.size()); }
  int64_t n_logits() const { return static_cast<int64_t>(logits.size()); }
};

class Decoder {
 public:
  Decoder(const TextConfig& config, const TextWeights& weights) : config_(config), weights_(weights) {}

  // The batch's rows [n, hidden_size], to be filled by the caller before forward().
  float* input(int64_t n) {
    x_.resize(static_cast<size_t>(n * config_.hidden_size));
    return x_.data();
  }
  void embed(Backend& backend, const int32_t* ids, int64_t n, float* out) const {
    backend.embed(weights_.token_embd, ids, n, out);
  }
  // Runs all layers over input(), the rows of one slice after the other, writes the caches and the logits. Expanded slices come
  // first.
  void forward(Backend& backend, const std::vector<DecoderSlice>& slices);

 private:
  void attention(Backend& backend, const DecoderLayerWeights& w, const std::vector<AttentionSlice>& slices, int64_t n,
                 int64_t n_out);
  void feed_forward(Backend& backend, const DecoderLayerWeights& w, bool dense, int64_t n, int64_t n_expanded);
  // Moves the rows that logits are wanted of together. -> how many, and how many of them are expanded
  int64_t keep_wanted(const std::vector<DecoderSlice>& slices, int64_t* n_expanded);
  void logits(Backend& backend, const std::vector<DecoderSlice>& slices);

  const TextConfig& config_;
  const TextWeights& weights_;
  AlignedBuffer<float> x_, normed_, logits_;
};

}  // namespace kimi
