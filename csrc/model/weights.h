// The tensors of the network by name and shape. Large ones stay in the mapping; vectors are copied so that they are
// aligned; the legacy attn_kv_b is split once, here, so that nothing behind this file knows of it.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "gguf/gguf.h"
#include "model/config.h"

namespace kimi {

// Norms, biases, tables: floats of the host, which a backend adopts when the weights are placed.
class Vector {
 public:
  Vector() = default;
  explicit Vector(size_t n) : host_(n) {}
  AlignedBuffer<float>& host() { return host_; }
  const AlignedBuffer<float>& host() const { return host_; }
  void place(Backend& backend) {
    if (host_.size() != 0) placed_ = backend.adopt(host_.data(), static_cast<int64_t>(host_.size()));
  }
  const float* floats() const { return placed_.floats(); }  // the backend's; nullptr: empty

 private:
  AlignedBuffer<float> host_;
  Buffer placed_;
};

struct DecoderLayerWeights {
  Vector attn_norm;       // [hidden_size]
  Matrix attn_q;          // [heads * (nope + rope), hidden_size]
  Matrix attn_kv_a_mqa;   // [kv_lora_rank + rope, hidden_size]
  Vector attn_kv_a_norm;  // [kv_lora_rank]
  Matrix attn_k_b;        // heads x [kv_lora_rank, nope]
  Matrix attn_v_b;        // heads x [v_head_dim, kv_lora_rank]
  Matrix attn_output;     // [hidden_size, heads * v_head_dim]
  Vector ffn_norm;        // [hidden_size]
  Swiglu dense;           // the first layers only
  Matrix ffn_gate_inp;    // [n_routed_experts, hidden_size]
  Vector exp_probs_b;     // [n_routed_experts]; empty: none
  Swiglu routed;          // n_routed_experts x [moe_intermediate_size, hidden_size] and back
  Swiglu shared;          // [n_shared_experts * moe_intermediate_size, hidden_size] and back
};

struct TextWeights {
  Matrix token_embd;     // [vocab_size, hidden_size]
  Matrix output;         // [vocab_size, hidden_size]
  Vector output_norm;    // [hidden_size]
  Buffer rope_inv_freq;  // [qk_rope_head_dim / 2], the backend's
  std::vector<DecoderLayerWeights> layers;
};

struct VitBlockWeights {
  Vector ln1_weight, ln1_bias, ln2_weight, ln2_bias;  // [hidden_size]
  Matrix attn_q, attn_k, attn_v, attn_out;            // [hidden_size, hidden_size]
  Vector attn_q_bias, attn_k_bias, attn_v_bias, attn_out_bias;
  Matrix ffn_up, ffn_down;  // [intermediate_size, hidden_size] and back
  Vector ffn_up_bias, ffn_down_bias;
};

struct VisionWeights {
  Matrix patch_embd;  // [hidden_size, 3 * patch_size^2], inputs in the order channel, y, x
  Vector patch_embd_bias;
  Vector position_embd;  // [side, side, hidden_size], on the host
  std::vector<VitBlockWeights> blocks;
  Vector post_ln_weight, post_ln_bias;
  Vector mm_input_norm_weight, mm_input_norm_bias;  // [hidden_size]
  Matrix mm_1, mm_2;                                // [4 hidden_size, 4 hidden_size], [text hidden_size, 4 hidden_size]
  Vector mm_1_bias, mm_2_bias;
};

// A tensor that products are taken with, as an observer of their inputs names it.
struct WeightInfo {
  std::string name;    // in GGUF
  int64_t n_matrices;  // in the stack (experts, heads)
  int64_t n_cols;
  bool is_one_matrix = false;  // in the file: the rows of all heads over the same columns
};

// Memory that the weights own beside the mapping, which tensors they are, and what was odd but harmless.
struct WeightStore {
  std::vector<AlignedBuffer<float>> converted;
  std::vector<WeightInfo> weights;  // by Matrix::weight
  std::vector<std::string> warnings;
};

// Sets config->vocab_size. Throws Error(bad_model_file, "model.tensor_*") that names file, tensor, found and expected.
TextWeights load_text_weights(const gguf::File& file, TextConfig* config, WeightStore* store);
VisionWeights load_vision_weights(const gguf::File& file, const VisionConfig& config, WeightStore* store);

// Hands them to the backend that is to compute with them. The config and what the weights point to must outlive them.
void place(Backend& backend, const TextConfig& config, TextWeights* weights);
void place(Backend& backend, VisionWeights* weights);

}  // namespace kimi
