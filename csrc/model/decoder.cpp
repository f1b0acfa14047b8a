#include "model/decoder.h"

#include <algorithm>
#include <cstring>

namespace kimi {

float* DecoderPass::begin(int64_t n, int64_t hidden_size) {
  slices_.clear();
  attended_.clear();
  n_ = n;
  layer_ = 0;
  wanted_only_ = false;
  x_.resize(static_cast<size_t>(n * hidden_size));
  return x_.data();
}

void Decoder::start(DecoderPass* pass) const {
  int64_t row = 0;
  pass->n_expanded_ = 0;
  for (const DecoderSlice& slice : pass->slices_) {
    pass->attended_.push_back({row, slice.n(), slice.positions.data(), slice.form, {}, slice.n(), row});
    row += slice.n();
    if (slice.form == RowForm::expanded) pass->n_expanded_ = row;
  }
}

// Of the last layer, rows without logits need their entries in the cache and nothing else; an observer still sees all rows.
bool Decoder::advance(Backend& backend, DecoderPass* pass) {
  const TextConfig& c = config_;
  const int64_t i = pass->layer_++, n = pass->n_;
  const bool last = i + 1 == c.num_hidden_layers;
  if (i == 0) start(pass);
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(i)];
  float* x = pass->x_.data();
  normed_.resize(static_cast<size_t>(n * c.hidden_size));
  backend.rms_norm(x, w.attn_norm.data(), c.rms_norm_eps, n, c.hidden_size, normed_.data());
  int64_t n_out = n;
  if (last && !backend.observed()) {
    n_out = keep_wanted(pass);
    int64_t out0 = 0;
    for (size_t s = 0; s < pass->slices_.size(); ++s) {
      pass->attended_[s].n_out = pass->slices_[s].n_logits();
      pass->attended_[s].out0 = out0;
      out0 += pass->slices_[s].n_logits();
    }
  }
  for (size_t s = 0; s < pass->slices_.size(); ++s) pass->attended_[s].cache = pass->slices_[s].cache->layer(i);
  attention(backend, w, pass->attended_, n, n_out, x);
  if (n_out > 0) feed_forward(backend, w, i < c.first_k_dense_replace, n_out, pass->n_expanded_, x);
  backend.check_interrupt();
  if (!last) return false;
  if (!pass->wanted_only_) keep_wanted(pass);
  logits(backend, *pass);
  return true;
}

int64_t Decoder::keep_wanted(DecoderPass* pass) const {
  const int64_t hidden = config_.hidden_size;
  float* x = pass->x_.data();
  int64_t row = 0, kept = 0;
  pass->n_expanded_ = 0;
  for (const DecoderSlice& slice : pass->slices_) {
    row += slice.n();
    std::memmove(x + kept * hidden, x + (row - slice.n_logits()) * hidden,
                 static_cast<size_t>(slice.n_logits() * hidden) * sizeof(float));
    kept += slice.n_logits();
    if (slice.form == RowForm::expanded) pass->n_expanded_ = kept;
  }
  pass->wanted_only_ = true;
  return kept;
}

// x [n_out] += attention of normed_ [n].
void Decoder::attention(Backend& backend, const DecoderLayerWeights& w, const std::vector<AttentionSlice>& slices, int64_t n,
                        int64_t n_out, float* x) {
  const TextConfig& c = config_;
  MlaArgs mla{};
  mla.x = normed_.data();
  mla.n = n;
  mla.n_out = n_out;
  mla.slices = &slices;
  mla.num_heads = c.num_attention_heads;
  mla.qk_nope_head_dim = c.qk_nope_head_dim;
  mla.qk_rope_head_dim = c.qk_rope_head_dim;
  mla.v_head_dim = c.v_head_dim;
  mla.kv_lora_rank = c.kv_lora_rank;
  mla.q = w.attn_q;
  mla.kv_a = w.attn_kv_a_mqa;
  mla.kv_a_norm = w.attn_kv_a_norm.data();
  mla.kv_a_norm_eps = c.kv_a_norm_eps;
  mla.k_b = w.attn_k_b;
  mla.v_b = w.attn_v_b;
  mla.o = w.attn_output;
  mla.scale = c.softmax_scale;
  mla.rope_inv_freq = c.rope_inv_freq.data();
  mla.rope_mscale = c.rope_mscale;
  mla.out = x;
  backend.mla_attention(mla);
}

// x [n] += feed-forward of its norm; the first n_expanded rows are expanded.
void Decoder::feed_forward(Backend& backend, const DecoderLayerWeights& w, bool dense, int64_t n, int64_t n_expanded, float* x) {
  const TextConfig& c = config_;
  backend.rms_norm(x, w.ffn_norm.data(), c.rms_norm_eps, n, c.hidden_size, normed_.data());
  if (dense) {
    backend.ffn({normed_.data(), n, w.dense, x, n_expanded});
    return;
  }
  MoeArgs moe{};
  moe.x = normed_.data();
  moe.n = n;
  moe.router = w.ffn_gate_inp;
  moe.selection_bias = w.exp_probs_b.size() ? w.exp_probs_b.data() : nullptr;
  moe.sigmoid = c.sigmoid_scores;
  moe.num_experts_per_tok = c.num_experts_per_tok;
  moe.norm_topk_prob = c.norm_topk_prob;
  moe.routed_scaling_factor = c.routed_scaling_factor;
  moe.routed = w.routed;
  moe.shared = w.shared;
  moe.out = x;
  moe.n_expanded = n_expanded;
  backend.moe_ffn(moe);
}

// The pass holds the wanted rows alone. Where the logits of a slice lie one after the other, a product of many rows writes them
// there; the rows of all other slices share one pass over the output matrix.
void Decoder::logits(Backend& backend, const DecoderPass& pass) {
  constexpr int64_t kShared = 4;  // rows of a slice
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  const auto project = [&](int64_t n, float* out, int64_t n_expanded) {
    LinearArgs head{};
    head.x = normed_.data();
    head.n = n;
    head.w = weights_.output;
    head.out = out;
    head.n_expanded = n_expanded;
    backend.linear(head);
  };
  const auto norm = [&](int64_t row, int64_t n, int64_t at) {
    backend.rms_norm(pass.x_.data() + row * hidden, weights_.output_norm.data(), config_.rms_norm_eps, n, hidden,
                     normed_.data() + at * hidden);
  };
  struct Span {  // of rows whose logits lie one after the other
    int64_t row, n;
    RowForm form;
    float* logits;
  };
  std::vector<Span> spans;
  int64_t row = 0;
  for (const DecoderSlice& slice : pass.slices_) {
    for (size_t i = 0; i < slice.logits.size(); ++i, ++row) {
      if (i > 0 && slice.logits[i] == slice.logits[i - 1] + vocab)
        ++spans.back().n;
      else
        spans.push_back({row, 1, slice.form, slice.logits[i]});
    }
  }
  int64_t n_shared = 0, n_expanded = 0;
  for (const Span& span : spans) {
    if (span.n <= kShared) continue;
    norm(span.row, span.n, 0);
    project(span.n, span.logits, span.form == RowForm::expanded ? span.n : 0);
  }
  for (const Span& span : spans) {
    if (span.n > kShared) continue;
    norm(span.row, span.n, n_shared);
    n_shared += span.n;
    if (span.form == RowForm::expanded) n_expanded = n_shared;
  }
  if (n_shared == 0) return;
  logits_.resize(static_cast<size_t>(n_shared * vocab));
  project(n_shared, logits_.data(), n_expanded);
  n_shared = 0;
  for (const Span& span : spans) {
    if (span.n > kShared) continue;
    std::memcpy(span.logits, logits_.data() + n_shared * vocab, static_cast<size_t>(span.n * vocab) * sizeof(float));
    n_shared += span.n;
  }
}

}  // namespace kimi
