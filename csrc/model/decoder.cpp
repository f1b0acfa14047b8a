#include "model/decoder.h"

#include <algorithm>
#include <cstring>

namespace kimi {

// Of the last layer, rows without logits need their entries in the cache and nothing else; an observer sees them all the same.
void Decoder::forward(Backend& backend, const std::vector<DecoderSlice>& slices, Rows rows) {
  const TextConfig& c = config_;
  int64_t n = 0;
  std::vector<AttentionSlice> attended(slices.size());
  for (size_t s = 0; s < slices.size(); ++s) {
    attended[s] = {n, slices[s].n, slices[s].past, {}, slices[s].n, n};
    n += slices[s].n;
  }
  normed_.resize(static_cast<size_t>(n * c.hidden_size));
  int64_t n_out = n;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(i)];
    backend.rms_norm(x_.data(), w.attn_norm.data(), c.rms_norm_eps, n, c.hidden_size, normed_.data());
    if (i + 1 == c.num_hidden_layers && !backend.observed()) {
      n_out = keep_wanted(slices);
      int64_t out0 = 0;
      for (size_t s = 0; s < slices.size(); ++s) {
        attended[s].n_out = slices[s].n_logits;
        attended[s].out0 = out0;
        out0 += slices[s].n_logits;
      }
    }
    for (size_t s = 0; s < slices.size(); ++s) attended[s].cache = slices[s].cache->layer(i);
    attention(backend, w, attended, n, n_out, rows);
    if (n_out > 0) feed_forward(backend, w, i < c.first_k_dense_replace, n_out, rows);
    backend.check_interrupt();
  }
  if (backend.observed()) keep_wanted(slices);
  logits(backend, slices);
}

int64_t Decoder::keep_wanted(const std::vector<DecoderSlice>& slices) {
  const int64_t hidden = config_.hidden_size;
  int64_t row = 0, kept = 0;
  for (const DecoderSlice& slice : slices) {
    row += slice.n;
    std::memmove(x_.data() + kept * hidden, x_.data() + (row - slice.n_logits) * hidden, static_cast<size_t>(slice.n_logits * hidden) * sizeof(float));
    kept += slice.n_logits;
  }
  return kept;
}

// x_ [n_out] += attention of normed_ [n].
void Decoder::attention(Backend& backend, const DecoderLayerWeights& w, const std::vector<AttentionSlice>& slices, int64_t n, int64_t n_out,
                        Rows rows) {
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
  mla.out = x_.data();
  mla.rows = rows;
  backend.mla_attention(mla);
}

// x_ [n] += feed-forward of its norm.
void Decoder::feed_forward(Backend& backend, const DecoderLayerWeights& w, bool dense, int64_t n, Rows rows) {
  const TextConfig& c = config_;
  float* x = x_.data();
  backend.rms_norm(x, w.ffn_norm.data(), c.rms_norm_eps, n, c.hidden_size, normed_.data());
  if (dense) {
    backend.ffn({normed_.data(), n, w.dense, x, rows});
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
  moe.rows = rows;
  backend.moe_ffn(moe);
}

// x_ holds the wanted rows alone. Slices that want a few logits share one pass over the output matrix; one that wants many has a pass of its own.
void Decoder::logits(Backend& backend, const std::vector<DecoderSlice>& slices) {
  const int64_t hidden = config_.hidden_size, vocab = config_.vocab_size;
  const auto project = [&](int64_t n, float* out, Rows rows) {
    LinearArgs head{};
    head.x = normed_.data();
    head.n = n;
    head.w = weights_.output;
    head.out = out;
    head.rows = rows;
    backend.linear(head);
  };
  const auto norm = [&](int64_t row, int64_t n, int64_t at) {
    backend.rms_norm(x_.data() + row * hidden, weights_.output_norm.data(), config_.rms_norm_eps, n, hidden, normed_.data() + at * hidden);
  };
  int64_t row = 0, n_few = 0;
  for (const DecoderSlice& slice : slices) {
    row += slice.n_logits;
    if (slice.n_logits > kFewRows) {
      norm(row - slice.n_logits, slice.n_logits, 0);
      project(slice.n_logits, slice.logits, Rows::many);
    }
  }
  row = 0;
  for (const DecoderSlice& slice : slices) {
    row += slice.n_logits;
    if (slice.n_logits == 0 || slice.n_logits > kFewRows) continue;
    norm(row - slice.n_logits, slice.n_logits, n_few);
    n_few += slice.n_logits;
  }
  if (n_few == 0) return;
  logits_.resize(static_cast<size_t>(n_few * vocab));
  project(n_few, logits_.data(), Rows::few);
  n_few = 0;
  for (const DecoderSlice& slice : slices) {
    if (slice.n_logits == 0 || slice.n_logits > kFewRows) continue;
    std::memcpy(slice.logits, logits_.data() + n_few * vocab, static_cast<size_t>(slice.n_logits * vocab) * sizeof(float));
    n_few += slice.n_logits;
  }
}

}  // namespace kimi
