// The text decoder: layers of latent attention and experts over a batch of slices.
#pragma once
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace kimi {

// A run of new positions, on the host: ids [n], or embeddings [n, hidden_size].
struct Part {
  const int32_t* ids = nullptr;
  const float* embeddings = nullptr;
  int64_t n = 0;
};

// New positions of one session, all in one form.
struct DecoderSlice {
  KvView cache;  // with room for all of them
  RowForm form;
  std::vector<Part> parts;         // read before the first layer
  std::vector<int32_t> positions;  // ascending
  std::vector<float*> logits;      // on the host, [vocab_size] each, of the last positions
  int32_t adapter = kNoAdapter;
};

// A batch on its way through the layers. Owns the activations that are handed from layer to layer.
class DecoderPass {
 public:
  // Starts a batch.
  void begin();
  // Expanded slices come first.
  void add(DecoderSlice slice) { slices_.push_back(std::move(slice)); }

 private:
  friend class Decoder;
  struct Span {  // of wanted rows whose logits lie one after the other
    int64_t row, n;
    RowForm form;
    float* logits;
  };
  const int32_t* adapters_of(const Span& span) const {
    return step_->wanted_adapters() ? step_->wanted_adapters() + span.row : nullptr;
  }
  std::vector<DecoderSlice> slices_;
  std::unique_ptr<Step> step_;  // the same for the backend
  std::vector<Span> spans_;
  int64_t n_shared_ = 0;  // rows of short spans
  std::vector<int32_t> shared_adapters_;
  Buffer x_;           // [n_rows, hidden_size]
  int64_t layer_ = 0;  // the next
};

class Decoder {
 public:
  Decoder(const TextConfig& config, const TextWeights& weights) : config_(config), weights_(weights) {}

  // The next layer of a pass, which writes the caches; with the last one the logits. -> whether that was the last.
  bool advance(Backend& backend, DecoderPass* pass) { return advance_to(backend, pass, pass->layer_ + 1); }
  void finish(Backend& backend, DecoderPass* pass) { advance_to(backend, pass, config_.num_hidden_layers); }

 private:
  bool advance_to(Backend& backend, DecoderPass* pass, int64_t end);
  void start(Backend& backend, DecoderPass* pass);
  void layer(Backend& backend, const DecoderPass& pass, int64_t i);
  void attention(Backend& backend, const DecoderLayerWeights& w, const DecoderPass& pass, int64_t i, bool wanted_only);
  void feed_forward(Backend& backend, const DecoderLayerWeights& w, const DecoderPass& pass, bool dense, bool wanted_only);
  void head(Backend& backend, const DecoderPass& pass);
  void norm_output(Backend& backend, const DecoderPass& pass, const DecoderPass::Span& span, int64_t at);
  LinearArgs output_product(int64_t n, int64_t n_expanded, const int32_t* adapters, float* out) const;
  void hand_out_logits(Backend& backend, const DecoderPass& pass);
  static StepKey key_of(const DecoderPass& pass, int64_t begin, int64_t end, bool observed);

  const TextConfig& config_;
  const TextWeights& weights_;
  Buffer normed_, logits_;  // within a layer
};

}  // namespace kimi
