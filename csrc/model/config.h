// Hyperparameters, read from GGUF keys and with Hugging Face's names. Every value is checked here; nothing
// behind this file meets a size that is zero, negative or absurd.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "gguf/gguf.h"

namespace kimi {

struct TextConfig {
  int64_t vocab_size, hidden_size, num_hidden_layers, max_position_embeddings;
  int64_t intermediate_size, moe_intermediate_size;
  int64_t num_attention_heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank;
  int64_t n_routed_experts, num_experts_per_tok, n_shared_experts, first_k_dense_replace;
  bool sigmoid_scores, norm_topk_prob;
  float routed_scaling_factor;
  float rms_norm_eps;
  float kv_a_norm_eps = 1e-6f;  // the class default in Hugging Face's code; no GGUF key carries it
  float softmax_scale;          // includes YaRN's factor where a file asks for it
  float rope_mscale = 1.0f;
  std::vector<float> rope_inv_freq;  // [qk_rope_head_dim / 2]
  bool legacy_kv_b;                  // attn_kv_b instead of attn_k_b + attn_v_b
};

struct VisionConfig {
  int64_t patch_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
  int64_t position_side;        // the learned table is [side, side, hidden]
  int64_t merge = 2;            // merge_kernel_size
  int64_t max_grid_side = 512;  // of the rotary table
  int64_t text_hidden_size;
  float layer_norm_eps;
  float projector_norm_eps = 1e-5f;
  float image_mean[3], image_std[3];
  bool split_rope;  // kimik25 files: q and k permuted so that columns and rows take halves
};

TextConfig read_text_config(const gguf::File& file);
// text_hidden_size: what the projector has to produce.
VisionConfig read_vision_config(const gguf::File& file, int64_t text_hidden_size);
bool has_vision(const gguf::File& file);

}  // namespace kimi
