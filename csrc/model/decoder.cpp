#include "model/decoder.h"

#include <algorithm>

namespace kimi {
namespace {

constexpr int64_t kShared = 4;  // spans of up to this many rows share one pass over the output matrix

}  // namespace

void DecoderPass::begin() {
  slices_.clear();
  spans_.clear();
  layer_ = 0;
}

// The rows of one slice after the other.
void Decoder::start(Backend& backend, DecoderPass* pass) {
  const int64_t hidden = config_.hidden_size;
  if (!pass->step_) pass->step_ = backend.new_step();
  Step& step = *pass->step_;
  step.clear();
  for (const DecoderSlice& slice : pass->slices_) {
    for (size_t i = 0; i < slice.logits.size(); ++i) {
      if (i > 0 && slice.logits[i] == slice.logits[i - 1] + config_.vocab_size)
        ++pass->spans_.back().n;
      else
        pass->spans_.push_back({step.n_wanted() + static_cast<int64_t>(i), 1, slice.form, slice.logits[i]});
    }
    step.add_slice(slice.form, slice.cache, slice.positions, static_cast<int64_t>(slice.logits.size()), slice.adapter);
  }
  pass->n_shared_ = 0;
  pass->shared_adapters_.clear();
  for (const DecoderPass::Span& span : pass->spans_) {
    if (span.n > kShared) continue;
    pass->n_shared_ += span.n;
    for (int64_t i = 0; i < span.n; ++i)
      pass->shared_adapters_.push_back(pass->adapters_of(span) ? pass->adapters_of(span)[i] : kNoAdapter);
  }
  float* x = backend.room(&pass->x_, step.n_rows() * hidden);
  int64_t row = 0;
  for (const DecoderSlice& slice : pass->slices_) {
    for (const Part& part : slice.parts) {
      if (part.ids)
        step.add_tokens(row, part.ids, part.n);
      else
        backend.upload(x + row * hidden, part.embeddings, part.n * hidden * int64_t{sizeof(float)});
      row += part.n;
    }
  }
}

// Everything but values that the operations of layers [begin, end) depend on.
StepKey Decoder::key_of(const DecoderPass& pass, int64_t begin, int64_t end, bool observed) {
  StepKey key = {reinterpret_cast<intptr_t>(&pass), begin, end, observed};
  for (const Step::Slice& slice : pass.step_->slices())
    key.insert(key.end(), {static_cast<int64_t>(slice.form), slice.n, slice.n_wanted, slice.adapter});
  for (const Step::Tokens& tokens : pass.step_->tokens()) key.insert(key.end(), {tokens.row0, tokens.n});
  for (const DecoderPass::Span& span : pass.spans_) key.insert(key.end(), {span.row, span.n});
  return key;
}

bool Decoder::advance_to(Backend& backend, DecoderPass* pass, int64_t end) {
  const int64_t begin = pass->layer_;
  const bool last = end == config_.num_hidden_layers;
  if (begin == 0) start(backend, pass);
  const Step& step = *pass->step_;
  backend.room(&normed_, step.n_rows() * config_.hidden_size);
  if (last) backend.room(&logits_, pass->n_shared_ * config_.vocab_size);
  backend.run_step(step, key_of(*pass, begin, end, backend.observed()), [&] {
    if (begin == 0) backend.embed(weights_.token_embd, step, pass->x_.floats());
    for (int64_t i = begin; i < end; ++i) {
      layer(backend, *pass, i);
      backend.check_interrupt();
    }
    if (last) head(backend, *pass);
  });
  pass->layer_ = end;
  if (last) hand_out_logits(backend, *pass);
  return last;
}

// Of the last layer, rows without logits need their entries in the cache and nothing else; an observer still sees all rows.
void Decoder::layer(Backend& backend, const DecoderPass& pass, int64_t i) {
  const TextConfig& c = config_;
  const DecoderLayerWeights& w = weights_.layers[static_cast<size_t>(i)];
  const Step& step = *pass.step_;
  const bool last = i + 1 == c.num_hidden_layers, wanted_only = last && !backend.observed();
  float* x = pass.x_.floats();
  backend.rms_norm(x, w.attn_norm.floats(), c.rms_norm_eps, step.n_rows(), c.hidden_size, normed_.floats());
  if (wanted_only) backend.gather_rows(step, x, c.hidden_size, x);
  attention(backend, w, pass, i, wanted_only);
  feed_forward(backend, w, pass, i < c.first_k_dense_replace, wanted_only);
  if (last && !wanted_only) backend.gather_rows(step, x, c.hidden_size, x);
}

// x += attention of normed_ [n_rows].
void Decoder::attention(Backend& backend, const DecoderLayerWeights& w, const DecoderPass& pass, int64_t i, bool wanted_only) {
  const TextConfig& c = config_;
  MlaArgs mla{};
  mla.x = normed_.floats();
  mla.step = pass.step_.get();
  mla.layer = i;
  mla.wanted_only = wanted_only;
  mla.num_heads = c.num_attention_heads;
  mla.qk_nope_head_dim = c.qk_nope_head_dim;
  mla.qk_rope_head_dim = c.qk_rope_head_dim;
  mla.v_head_dim = c.v_head_dim;
  mla.kv_lora_rank = c.kv_lora_rank;
  mla.q = w.attn_q;
  mla.kv_a = w.attn_kv_a_mqa;
  mla.kv_a_norm = w.attn_kv_a_norm.floats();
  mla.kv_a_norm_eps = c.kv_a_norm_eps;
  mla.k_b = w.attn_k_b;
  mla.v_b = w.attn_v_b;
  mla.o = w.attn_output;
  mla.scale = c.softmax_scale;
  mla.rope_inv_freq = weights_.rope_inv_freq.floats();
  mla.rope_mscale = c.rope_mscale;
  mla.out = pass.x_.floats();
  backend.mla_attention(mla);
}

// x += feed-forward of its norm, of the wanted rows or of all.
void Decoder::feed_forward(Backend& backend, const DecoderLayerWeights& w, const DecoderPass& pass, bool dense,
                           bool wanted_only) {
  const TextConfig& c = config_;
  const Step& step = *pass.step_;
  const int64_t n = wanted_only ? step.n_wanted() : step.n_rows(),
                n_expanded = wanted_only ? step.n_wanted_expanded() : step.n_expanded();
  const int32_t* adapters = wanted_only ? step.wanted_adapters() : step.adapters();
  float* x = pass.x_.floats();
  if (n == 0) return;
  backend.rms_norm(x, w.ffn_norm.floats(), c.rms_norm_eps, n, c.hidden_size, normed_.floats());
  if (dense) {
    backend.ffn({normed_.floats(), n, w.dense, x, n_expanded, adapters});
    return;
  }
  MoeArgs moe{};
  moe.x = normed_.floats();
  moe.n = n;
  moe.router = w.ffn_gate_inp;
  moe.selection_bias = w.exp_probs_b.floats();
  moe.sigmoid = c.sigmoid_scores;
  moe.num_experts_per_tok = c.num_experts_per_tok;
  moe.norm_topk_prob = c.norm_topk_prob;
  moe.routed_scaling_factor = c.routed_scaling_factor;
  moe.routed = w.routed;
  moe.shared = w.shared;
  moe.out = x;
  moe.n_expanded = n_expanded;
  moe.adapters = adapters;
  backend.moe_ffn(moe);
}

void Decoder::norm_output(Backend& backend, const DecoderPass& pass, const DecoderPass::Span& span, int64_t at) {
  const int64_t hidden = config_.hidden_size;
  backend.rms_norm(pass.x_.floats() + span.row * hidden, weights_.output_norm.floats(), config_.rms_norm_eps, span.n, hidden,
                   normed_.floats() + at * hidden);
}

// The first n rows of normed_; the first n_expanded of them are expanded.
LinearArgs Decoder::output_product(int64_t n, int64_t n_expanded, const int32_t* adapters, float* out) const {
  LinearArgs args{};
  args.x = normed_.floats();
  args.n = n;
  args.w = weights_.output;
  args.out = out;
  args.n_expanded = n_expanded;
  args.adapters = adapters;
  return args;
}

// The pass holds the wanted rows alone. Short spans share one pass over the output matrix.
void Decoder::head(Backend& backend, const DecoderPass& pass) {
  int64_t n = 0, n_expanded = 0;
  for (const DecoderPass::Span& span : pass.spans_) {
    if (span.n > kShared) continue;
    norm_output(backend, pass, span, n);
    n += span.n;
    if (span.form == RowForm::expanded) n_expanded = n;
  }
  if (n > 0) backend.linear(output_product(n, n_expanded, pass.shared_adapters_.data(), logits_.floats()));
}

// Where many logits lie one after the other, a product of their own writes them there.
void Decoder::hand_out_logits(Backend& backend, const DecoderPass& pass) {
  const float* from = logits_.floats();
  for (const DecoderPass::Span& span : pass.spans_) {
    if (span.n <= kShared) {
      backend.download(span.logits, from, span.n * config_.vocab_size * int64_t{sizeof(float)});
      from += span.n * config_.vocab_size;
    } else {
      norm_output(backend, pass, span, 0);
      const int64_t n_expanded = span.form == RowForm::expanded ? span.n : 0;
      backend.linear_to_host(output_product(span.n, n_expanded, pass.adapters_of(span), span.logits));
    }
  }
}

}  // namespace kimi
