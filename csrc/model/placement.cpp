// Weights into a backend's hands: once after loading, on the views that operations take.
#include "model/weights.h"

namespace kimi {
namespace {

struct Placing {
  Backend& backend;
  void operator()(Vector& vector) const { vector.place(backend); }
  void operator()(Matrix& matrix, Use use = Use::product) const {
    if (matrix) matrix = backend.prepare(matrix, use);
  }
  void operator()(Swiglu& w) const {
    for (Matrix* matrix : {&w.gate, &w.up, &w.down}) (*this)(*matrix);
  }
};

}  // namespace

void place(Backend& backend, const TextConfig& config, TextWeights* w) {
  const Placing place{backend};
  place(w->token_embd, Use::rows);
  place(w->output);
  place(w->output_norm);
  for (DecoderLayerWeights& layer : w->layers) {
    for (Vector* vector : {&layer.attn_norm, &layer.attn_kv_a_norm, &layer.ffn_norm, &layer.exp_probs_b}) place(*vector);
    for (Matrix* matrix :
         {&layer.attn_q, &layer.attn_kv_a_mqa, &layer.attn_k_b, &layer.attn_v_b, &layer.attn_output, &layer.ffn_gate_inp})
      place(*matrix);
    for (Swiglu* swiglu : {&layer.dense, &layer.routed, &layer.shared}) place(*swiglu);
  }
  w->rope_inv_freq = backend.adopt(config.rope_inv_freq.data(), static_cast<int64_t>(config.rope_inv_freq.size()));
}

// The table of positions stays on the host: it is resampled for each size of pictures.
void place(Backend& backend, VisionWeights* w) {
  const Placing place{backend};
  for (VitBlockWeights& block : w->blocks) {
    for (Vector* vector :
         {&block.ln1_weight, &block.ln1_bias, &block.ln2_weight, &block.ln2_bias, &block.attn_q_bias, &block.attn_k_bias,
          &block.attn_v_bias, &block.attn_out_bias, &block.ffn_up_bias, &block.ffn_down_bias})
      place(*vector);
    for (Matrix* matrix : {&block.attn_q, &block.attn_k, &block.attn_v, &block.attn_out, &block.ffn_up, &block.ffn_down})
      place(*matrix);
  }
  for (Vector* vector : {&w->patch_embd_bias, &w->post_ln_weight, &w->post_ln_bias, &w->mm_input_norm_weight,
                         &w->mm_input_norm_bias, &w->mm_1_bias, &w->mm_2_bias})
    place(*vector);
  for (Matrix* matrix : {&w->patch_embd, &w->mm_1, &w->mm_2}) place(*matrix);
}

}  // namespace kimi
