#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "gguf/types.h"

namespace kimi {
namespace {

std::string shape_text(const int64_t* ne, int n) {
  std::string text = "[";
  for (int i = 0; i < n; ++i) text += (i ? ", " : "") + std::to_string(ne[i]);
  return text + "]";
}

// Takes tensors by name from a file, holds them to a shape and gives them as matrices and vectors; remembers which were asked
// for.
class TensorLoader {
 public:
  TensorLoader(const gguf::File& file, WeightStore* store) : file_(file), store_(store) {}

  bool has(const std::string& name) const { return file_.find_tensor(name) != nullptr; }

  // ne in GGUF's order, contiguous dimension first.
  const gguf::TensorInfo& tensor(const std::string& name, std::vector<int64_t> ne, const char* why) {
    const gguf::TensorInfo* t = file_.find_tensor(name);
    KIMI_CHECK(t, ErrorKind::bad_model_file, "model.tensor_missing",
               "%s: tensor %s is missing: the file is incomplete or belongs to another model, download or convert it again",
               path(), name.c_str());
    used_.insert(name);
    KIMI_CHECK(t->format, ErrorKind::unsupported, "model.tensor_type",
               "%s: tensor %s has type %s, which is not supported: use a file of the types %s", path(), name.c_str(),
               gguf::type_name(t->type_id), quant::format_names().c_str());
    ne.resize(4, 1);
    bool same = true;
    for (int i = 0; i < 4; ++i) same = same && t->ne[i] == ne[static_cast<size_t>(i)];
    int n_dims = 4;
    while (n_dims > 1 && ne[static_cast<size_t>(n_dims - 1)] == 1) --n_dims;
    KIMI_CHECK(same, ErrorKind::bad_model_file, "model.tensor_shape", "%s: tensor %s: shape %s, expected %s from %s", path(),
               name.c_str(), shape_text(t->ne, std::max(t->n_dims, 1)).c_str(), shape_text(ne.data(), n_dims).c_str(), why);
    check_scales(*t);
    return *t;
  }

  Matrix matrix(const std::string& name, int64_t rows, int64_t cols, const char* why, int64_t count = 0) {
    std::vector<int64_t> ne = {cols, rows};
    if (count) ne.push_back(count);
    Matrix m = view(tensor(name, ne, why), rows, cols, count ? count : 1);
    m.weight = static_cast<int32_t>(store_->weights.size());
    store_->weights.push_back({name, m.count, cols});
    return m;
  }

  static Matrix view(const gguf::TensorInfo& t, int64_t rows, int64_t cols, int64_t count) {
    Matrix m;
    m.type = t.format->type;
    m.data = t.data;
    m.rows = rows;
    m.cols = cols;
    m.row_bytes = t.format->row_bytes(cols);
    m.count = count;
    m.stack_bytes = rows * m.row_bytes;
    return m;
  }

  // Norms, biases, tables: float32 in every file that a converter wrote.
  Vector vector(const std::string& name, int64_t n, const char* why) { return vector(name, std::vector<int64_t>{n}, why); }
  Vector vector(const std::string& name, std::vector<int64_t> ne, const char* why) {
    const gguf::TensorInfo& t = tensor(name, std::move(ne), why);
    KIMI_CHECK(t.format->type == quant::Type::F32, ErrorKind::bad_model_file, "model.tensor_type",
               "%s: tensor %s has type %s, expected F32: norms and biases are never quantized, convert the file again", path(),
               name.c_str(), t.format->name);
    Vector out(static_cast<size_t>(t.n_elems()));
    AlignedBuffer<float>& values = out.host();
    std::copy_n(t.data, values.size() * sizeof(float), reinterpret_cast<uint8_t*>(values.data()));
    for (size_t i = 0; i < values.size(); ++i)
      KIMI_CHECK(std::isfinite(values[i]), ErrorKind::bad_model_file, "model.not_finite",
                 "%s: tensor %s has a value that is not finite at element %zu: the file is damaged", path(), name.c_str(), i);
    return out;
  }

  // A tensor under one of the network's own prefixes has a meaning that would be lost (a bias, a layer more, another name for a
  // tensor); anything else is only odd.
  void report_unused(std::initializer_list<const char*> own) {
    size_t extra = 0;
    std::string first;
    for (const gguf::TensorInfo& t : file_.tensors()) {
      if (used_.count(t.name)) continue;
      for (const char* prefix : own)
        KIMI_CHECK(t.name.rfind(prefix, 0) != 0, ErrorKind::unsupported, "model.tensor_unknown",
                   "%s: tensor %s is not part of Kimi-VL's network as the file's metadata describes it, and ignoring it would "
                   "change the answers: "
                   "use a file of a Kimi-VL model, or convert it again",
                   path(), t.name.c_str());
      if (extra++ == 0) first = t.name;
    }
    if (extra)
      store_->warnings.push_back(format_string("%s: %zu tensors are not part of the model and are ignored, the first is %s",
                                               path(), extra, first.c_str()));
  }
  // In a file that holds both models, the other one's tensors are not odd.
  void expect_prefixes(std::initializer_list<const char*> prefixes) {
    for (const gguf::TensorInfo& t : file_.tensors())
      for (const char* prefix : prefixes)
        if (t.name.rfind(prefix, 0) == 0) used_.insert(t.name);
  }

  const char* path() const { return file_.path().c_str(); }

 private:
  // The first block of every row of a small tensor, and of a large one the first alone: each look at another page of a cold file
  // costs a read of 128 KiB (`inspect --check` looks at everything).
  void check_scales(const gguf::TensorInfo& t) const {
    constexpr uint64_t kSmall = uint64_t{4} << 20;
    const int64_t blocks_per_row = t.ne[0] / t.format->block_elems, n_rows = static_cast<int64_t>(t.n_elems()) / t.ne[0];
    float values[256];
    for (int64_t row = 0; row < (t.n_bytes <= kSmall ? n_rows : 1); ++row) {
      t.format->decode(t.data + row * blocks_per_row * t.format->block_bytes, values, t.format->block_elems);
      for (int i = 0; i < t.format->block_elems; ++i)
        KIMI_CHECK(std::isfinite(values[i]), ErrorKind::bad_model_file, "model.not_finite",
                   "%s: tensor %s has values that are not finite in row %lld: the file is damaged, download it again", path(),
                   t.name.c_str(), static_cast<long long>(row));
    }
  }

  const gguf::File& file_;
  WeightStore* store_;
  std::set<std::string> used_;
};

Swiglu swiglu(TensorLoader& load, const std::string& prefix, const std::string& suffix, int64_t inner, int64_t hidden,
              const char* why, int64_t count) {
  Swiglu w;
  if (count && load.has(prefix + "ffn_gate_up_exps.weight")) {
    const Matrix both = load.matrix(prefix + "ffn_gate_up_exps.weight", 2 * inner, hidden, why, count);
    w.gate = w.up = both;  // gate rows first in every expert
    w.gate.rows = w.up.rows = inner;
    w.up.data += inner * both.row_bytes;
    w.up.weight = -1;  // the gate says what both are multiplied with
  } else {
    w.gate = load.matrix(prefix + "ffn_gate" + suffix + ".weight", inner, hidden, why, count);
    w.up = load.matrix(prefix + "ffn_up" + suffix + ".weight", inner, hidden, why, count);
  }
  w.down = load.matrix(prefix + "ffn_down" + suffix + ".weight", hidden, inner, why, count);
  return w;
}

// attn_kv_b [kv_lora_rank, heads * (nope + v)]: values are rows of it, keys are transposed into the store's memory.
void split_kv_b(TensorLoader& load, const std::string& prefix, const TextConfig& c, WeightStore* store,
                DecoderLayerWeights* layer) {
  const int64_t per_head = c.qk_nope_head_dim + c.v_head_dim;
  const Matrix kv_b = load.matrix(prefix + "attn_kv_b.weight", c.num_attention_heads * per_head, c.kv_lora_rank,
                                  "attention.head_count, key_length, value_length, kv_lora_rank");
  layer->attn_v_b = kv_b;
  layer->attn_v_b.data += c.qk_nope_head_dim * kv_b.row_bytes;
  layer->attn_v_b.rows = c.v_head_dim;
  layer->attn_v_b.count = c.num_attention_heads;
  layer->attn_v_b.stack_bytes = per_head * kv_b.row_bytes;
  WeightInfo& info = store->weights[static_cast<size_t>(kv_b.weight)];
  info.n_matrices = c.num_attention_heads;
  info.is_one_matrix = true;
  AlignedBuffer<float>& keys =
      store->converted.emplace_back(static_cast<size_t>(c.num_attention_heads * c.kv_lora_rank * c.qk_nope_head_dim));
  std::vector<float> row(static_cast<size_t>(c.kv_lora_rank));
  for (int64_t h = 0; h < c.num_attention_heads; ++h)
    for (int64_t n = 0; n < c.qk_nope_head_dim; ++n) {
      quant::format_of(kv_b.type).decode(kv_b.data + (h * per_head + n) * kv_b.row_bytes, row.data(), c.kv_lora_rank);
      for (int64_t k = 0; k < c.kv_lora_rank; ++k)
        keys[static_cast<size_t>((h * c.kv_lora_rank + k) * c.qk_nope_head_dim + n)] = row[static_cast<size_t>(k)];
    }
  Matrix& k_b = layer->attn_k_b;
  k_b.type = quant::Type::F32;
  k_b.data = reinterpret_cast<const uint8_t*>(keys.data());
  k_b.rows = c.kv_lora_rank;
  k_b.cols = c.qk_nope_head_dim;
  k_b.row_bytes = c.qk_nope_head_dim * 4;
  k_b.count = c.num_attention_heads;
  k_b.stack_bytes = c.kv_lora_rank * k_b.row_bytes;
}

}  // namespace

TextWeights load_text_weights(const gguf::File& file, TextConfig* config, WeightStore* store) {
  TensorLoader load(file, store);
  TextConfig& c = *config;
  TextWeights w;
  const gguf::TensorInfo* embedding = file.find_tensor("token_embd.weight");
  c.vocab_size = embedding ? embedding->ne[1] : 1;
  if (const auto tokens = file.find_key("tokenizer.ggml.tokens"); tokens && embedding && tokens->type == gguf::ValueType::array)
    KIMI_CHECK(static_cast<int64_t>(tokens->count) == c.vocab_size, ErrorKind::bad_model_file, "model.vocab_size",
               "%s: tokenizer.ggml.tokens has %llu tokens, but token_embd.weight has %lld rows: the file is damaged, download or "
               "convert it again",
               load.path(), static_cast<unsigned long long>(tokens->count), static_cast<long long>(c.vocab_size));
  KIMI_CHECK(c.vocab_size <= (int64_t{1} << 24), ErrorKind::bad_model_file, "model.tensor_shape",
             "%s: tensor token_embd.weight has %lld rows, expected at most 2^24", load.path(),
             static_cast<long long>(c.vocab_size));
  w.token_embd = load.matrix("token_embd.weight", c.vocab_size, c.hidden_size, "deepseek2.embedding_length");
  // Kimi-VL's output is a matrix of its own: a file without one is incomplete, unless it says that the two are the same.
  const bool tied = !load.has("output.weight") && file.get_bool("kimi_vl.tied_embeddings").value_or(false);
  w.output = tied ? w.token_embd
                  : load.matrix("output.weight", c.vocab_size, c.hidden_size, "token_embd.weight and deepseek2.embedding_length");
  w.output_norm = load.vector("output_norm.weight", c.hidden_size, "deepseek2.embedding_length");
  const int64_t heads = c.num_attention_heads;
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string b = "blk." + std::to_string(i) + ".";
    DecoderLayerWeights& layer = w.layers.emplace_back();
    layer.attn_norm = load.vector(b + "attn_norm.weight", c.hidden_size, "deepseek2.embedding_length");
    layer.attn_q = load.matrix(b + "attn_q.weight", heads * (c.qk_nope_head_dim + c.qk_rope_head_dim), c.hidden_size,
                               "deepseek2.attention.head_count, key_length and embedding_length");
    layer.attn_kv_a_mqa = load.matrix(b + "attn_kv_a_mqa.weight", c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size,
                                      "deepseek2.attention.kv_lora_rank, rope.dimension_count and embedding_length");
    layer.attn_kv_a_norm = load.vector(b + "attn_kv_a_norm.weight", c.kv_lora_rank, "deepseek2.attention.kv_lora_rank");
    if (load.has(b + "attn_k_b.weight") || !c.legacy_kv_b) {
      load.expect_prefixes({(b + "attn_kv_b.weight").c_str()});  // the same numbers in one piece, which some converters leave
      layer.attn_k_b = load.matrix(b + "attn_k_b.weight", c.kv_lora_rank, c.qk_nope_head_dim,
                                   "deepseek2.attention.kv_lora_rank, key_length and head_count", heads);
      layer.attn_v_b = load.matrix(b + "attn_v_b.weight", c.v_head_dim, c.kv_lora_rank,
                                   "deepseek2.attention.value_length, kv_lora_rank and head_count", heads);
    } else {
      split_kv_b(load, b, c, store, &layer);
    }
    layer.attn_output = load.matrix(b + "attn_output.weight", c.hidden_size, heads * c.v_head_dim,
                                    "deepseek2.embedding_length, head_count and value_length");
    layer.ffn_norm = load.vector(b + "ffn_norm.weight", c.hidden_size, "deepseek2.embedding_length");
    if (i < c.first_k_dense_replace) {
      layer.dense =
          swiglu(load, b, "", c.intermediate_size, c.hidden_size, "deepseek2.feed_forward_length and embedding_length", 0);
      continue;
    }
    layer.ffn_gate_inp =
        load.matrix(b + "ffn_gate_inp.weight", c.n_routed_experts, c.hidden_size, "deepseek2.expert_count and embedding_length");
    KIMI_CHECK(quant::format_of(layer.ffn_gate_inp.type).is_float(), ErrorKind::bad_model_file, "model.tensor_type",
               "%s: tensor %sffn_gate_inp.weight has type %s, expected F32: routers are never quantized, convert the file again",
               load.path(), b.c_str(), quant::format_of(layer.ffn_gate_inp.type).name);
    if (c.sigmoid_scores || load.has(b + "exp_probs_b.bias"))
      layer.exp_probs_b = load.vector(b + "exp_probs_b.bias", c.n_routed_experts, "deepseek2.expert_count");
    layer.routed = swiglu(load, b, "_exps", c.moe_intermediate_size, c.hidden_size,
                          "deepseek2.expert_feed_forward_length, embedding_length and expert_count", c.n_routed_experts);
    if (c.n_shared_experts)
      layer.shared = swiglu(load, b, "_shexp", c.n_shared_experts * c.moe_intermediate_size, c.hidden_size,
                            "deepseek2.expert_shared_count x expert_feed_forward_length and embedding_length", 0);
  }
  load.expect_prefixes({"v.", "mm."});
  load.report_unused({"blk.", "output", "token_embd"});
  return w;
}

VisionWeights load_vision_weights(const gguf::File& file, const VisionConfig& c, WeightStore* store) {
  TensorLoader load(file, store);
  VisionWeights w;
  const char* embedding = "clip.vision.embedding_length";
  const gguf::TensorInfo& patch = load.tensor("v.patch_embd.weight", {c.patch_size, c.patch_size, 3, c.hidden_size},
                                              "clip.vision.patch_size and embedding_length");
  KIMI_CHECK(patch.format->is_float(), ErrorKind::bad_model_file, "model.tensor_type",
             "%s: tensor v.patch_embd.weight has type %s, expected F32, F16 or BF16", load.path(), patch.format->name);
  w.patch_embd = TensorLoader::view(patch, c.hidden_size, 3 * c.patch_size * c.patch_size, 1);
  w.patch_embd_bias = load.vector("v.patch_embd.bias", c.hidden_size, embedding);
  const int64_t side = c.position_side;
  const gguf::TensorInfo* table = file.find_tensor("v.position_embd.weight");
  const bool as_grid = table && table->ne[2] > 1;  // kimik25 files
  w.position_embd = load.vector(
      "v.position_embd.weight",
      as_grid ? std::vector<int64_t>{c.hidden_size, side, side} : std::vector<int64_t>{c.hidden_size, side * side}, embedding);
  for (int64_t i = 0; i < c.num_hidden_layers; ++i) {
    const std::string b = "v.blk." + std::to_string(i) + ".";
    VitBlockWeights& block = w.blocks.emplace_back();
    block.ln1_weight = load.vector(b + "ln1.weight", c.hidden_size, embedding);
    block.ln1_bias = load.vector(b + "ln1.bias", c.hidden_size, embedding);
    block.ln2_weight = load.vector(b + "ln2.weight", c.hidden_size, embedding);
    block.ln2_bias = load.vector(b + "ln2.bias", c.hidden_size, embedding);
    if (load.has(b + "attn_qkv.weight")) {
      const Matrix qkv = load.matrix(b + "attn_qkv.weight", 3 * c.hidden_size, c.hidden_size, embedding);
      const Vector bias = load.vector(b + "attn_qkv.bias", 3 * c.hidden_size, embedding);
      Matrix* parts[3] = {&block.attn_q, &block.attn_k, &block.attn_v};
      Vector* biases[3] = {&block.attn_q_bias, &block.attn_k_bias, &block.attn_v_bias};
      for (int p = 0; p < 3; ++p) {
        *parts[p] = qkv;
        parts[p]->rows = c.hidden_size;
        parts[p]->data += p * c.hidden_size * qkv.row_bytes;
        if (p > 0) parts[p]->weight = -1;  // the queries say what all three are multiplied with
        *biases[p] = Vector(static_cast<size_t>(c.hidden_size));
        std::copy_n(bias.host().data() + p * c.hidden_size, c.hidden_size, biases[p]->host().data());
      }
    } else {
      block.attn_q = load.matrix(b + "attn_q.weight", c.hidden_size, c.hidden_size, embedding);
      block.attn_k = load.matrix(b + "attn_k.weight", c.hidden_size, c.hidden_size, embedding);
      block.attn_v = load.matrix(b + "attn_v.weight", c.hidden_size, c.hidden_size, embedding);
      block.attn_q_bias = load.vector(b + "attn_q.bias", c.hidden_size, embedding);
      block.attn_k_bias = load.vector(b + "attn_k.bias", c.hidden_size, embedding);
      block.attn_v_bias = load.vector(b + "attn_v.bias", c.hidden_size, embedding);
    }
    block.attn_out = load.matrix(b + "attn_out.weight", c.hidden_size, c.hidden_size, embedding);
    block.attn_out_bias = load.vector(b + "attn_out.bias", c.hidden_size, embedding);
    block.ffn_up = load.matrix(b + "ffn_up.weight", c.intermediate_size, c.hidden_size, "clip.vision.feed_forward_length");
    block.ffn_up_bias = load.vector(b + "ffn_up.bias", c.intermediate_size, "clip.vision.feed_forward_length");
    block.ffn_down = load.matrix(b + "ffn_down.weight", c.hidden_size, c.intermediate_size, "clip.vision.feed_forward_length");
    block.ffn_down_bias = load.vector(b + "ffn_down.bias", c.hidden_size, embedding);
  }
  w.post_ln_weight = load.vector("v.post_ln.weight", c.hidden_size, embedding);
  w.post_ln_bias = load.vector("v.post_ln.bias", c.hidden_size, embedding);
  const int64_t merged = c.merge * c.merge * c.hidden_size;
  w.mm_input_norm_weight = load.vector("mm.input_norm.weight", c.hidden_size, embedding);
  w.mm_input_norm_bias = load.vector("mm.input_norm.bias", c.hidden_size, embedding);
  w.mm_1 = load.matrix("mm.1.weight", merged, merged, "4 x clip.vision.embedding_length");
  w.mm_1_bias = load.vector("mm.1.bias", merged, "4 x clip.vision.embedding_length");
  w.mm_2 = load.matrix("mm.2.weight", c.text_hidden_size, merged, "clip.vision.projection_dim");
  w.mm_2_bias = load.vector("mm.2.bias", c.text_hidden_size, "clip.vision.projection_dim");
  load.expect_prefixes({"blk.", "token_embd.", "output"});
  load.report_unused({"v.", "mm."});
  return w;
}

}  // namespace kimi
