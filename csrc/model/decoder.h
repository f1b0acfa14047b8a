// The text decoder: layers of latent attention and experts over a batch of slices.
#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/kv_pages.h"
#include "model/weights.h"

namespace kimi {

// New positions of one session, all in one form: token ids or embeddings, in order.
struct DecoderSlice {
  const PageTable* cache;          // pages for all positions
  std::vector<int32_t> positions;  // ascending
  RowForm form;
  std::vector<float*> logits;  // [vocab_size] each, of the last positions
  int64_t n() const { return static_cast<int64_t>(positions.size()); }
  int64_t n_logits() const { return static_cast<int64_t>(logits.size()); }
};

// A batch on its way through the layers. Owns the activations that are handed from layer to layer.
class DecoderPass {
 public:
  // Starts a batch of n rows, [n, hidden_size]: they are filled, and the slices added, before the first layer.
  float* begin(int64_t n, int64_t hidden_size);
  // The rows of one slice after the other; expanded slices come first.
  void add(DecoderSlice slice) { slices_.push_back(std::move(slice)); }

 private:
  friend class Decoder;
  std::vector<DecoderSlice> slices_;
  std::vector<AttentionSlice> attended_;  // the same for the backend
  AlignedBuffer<float> x_;                // [n, hidden_size]
  int64_t n_ = 0, n_expanded_ = 0;        // rows; the first of them are expanded
  int64_t layer_ = 0;                     // the next
  bool wanted_only_ = false;              // rows without logits have been dropped
};

class Decoder {
 public:
  Decoder(const TextConfig& config, const TextWeights& weights) : config_(config), weights_(weights) {}

  void embed(Backend& backend, const int32_t* ids, int64_t n, float* out) const {
    backend.embed(weights_.token_embd, ids, n, out);
  }
  // The next layer of a pass, which writes the caches; with the last one the logits. -> whether that was the last.
  bool advance(Backend& backend, DecoderPass* pass);
  void finish(Backend& backend, DecoderPass* pass) {
    while (!advance(backend, pass)) continue;
  }

 private:
  void start(DecoderPass* pass) const;
  // Moves the rows that logits are wanted of together. -> how many
  int64_t keep_wanted(DecoderPass* pass) const;
  void attention(Backend& backend, const DecoderLayerWeights& w, const std::vector<AttentionSlice>& slices, int64_t n,
                 int64_t n_out, float* x);
  void feed_forward(Backend& backend, const DecoderLayerWeights& w, bool dense, int64_t n, int64_t n_expanded, float* x);
  void logits(Backend& backend, const DecoderPass& pass);

  const TextConfig& config_;
  const TextWeights& weights_;
  AlignedBuffer<float> normed_, logits_;  // within a layer
};

}  // namespace kimi
