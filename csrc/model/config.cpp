#include "model/config.h"

#include <cmath>
#include <cstdlib>

#include "base/error.h"

namespace kimi {
namespace {

// Typed, bounded access to the keys of one file.
class Keys {
 public:
  Keys(const gguf::File& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  int64_t integer(const std::string& name, int64_t low, int64_t high) const {
    const auto value = find_integer(name, low, high);
    if (!value) missing(name);
    return *value;
  }
  int64_t integer_or(const std::string& name, int64_t low, int64_t high, int64_t otherwise) const {
    return find_integer(name, low, high).value_or(otherwise);
  }
  std::optional<int64_t> find_integer(const std::string& name, int64_t low, int64_t high) const {
    const auto value = file_.get_uint(prefix_ + name);
    if (value && (*value > static_cast<uint64_t>(high) || static_cast<int64_t>(*value) < low))
      fail(ErrorKind::bad_model_file, "model.key_range",
           "%s: key %s%s is %llu, expected %lld to %lld: the file is damaged or not a Kimi-VL model", path(), prefix_.c_str(),
           name.c_str(), static_cast<unsigned long long>(*value), static_cast<long long>(low), static_cast<long long>(high));
    return value ? std::optional<int64_t>(static_cast<int64_t>(*value)) : std::nullopt;
  }
  double real(const std::string& name, double low, double high) const {
    const auto value = find_real(name, low, high);
    if (!value) missing(name);
    return *value;
  }
  std::optional<double> find_real(const std::string& name, double low, double high) const {
    const auto value = file_.get_float(prefix_ + name);
    if (value && !(*value >= low && *value <= high))  // also NaN
      fail(ErrorKind::bad_model_file, "model.key_range",
           "%s: key %s%s is %g, expected %g to %g: the file is damaged or not a Kimi-VL model", path(), prefix_.c_str(),
           name.c_str(), *value, low, high);
    return value;
  }
  std::optional<bool> boolean(const std::string& name) const { return file_.get_bool(prefix_ + name); }
  std::optional<std::string_view> string(const std::string& name) const { return file_.get_string(prefix_ + name); }
  bool has(const std::string& name) const { return file_.find_key(prefix_ + name) != nullptr; }
  const char* path() const { return file_.path().c_str(); }
  [[noreturn]] void missing(const std::string& name) const {
    fail(ErrorKind::bad_model_file, "model.key_missing",
         "%s: key %s%s is missing: the file was written by an incomplete converter, download or convert it again", path(),
         prefix_.c_str(), name.c_str());
  }

 private:
  const gguf::File& file_;
  std::string prefix_;
};

std::string architecture(const gguf::File& file) {
  const auto value = file.get_string("general.architecture");
  KIMI_CHECK(value.has_value(), ErrorKind::bad_model_file, "model.key_missing",
             "%s: key general.architecture is missing: this is not a model file", file.path().c_str());
  return std::string(*value);
}

void read_rope(const Keys& keys, TextConfig* c) {
  const double base = keys.real("rope.freq_base", 1.0, 1e12);
  const int64_t half = c->qk_rope_head_dim / 2;
  c->rope_inv_freq.resize(static_cast<size_t>(half));
  for (int64_t j = 0; j < half; ++j)
    c->rope_inv_freq[static_cast<size_t>(j)] =
        static_cast<float>(std::pow(base, -2.0 * static_cast<double>(j) / static_cast<double>(c->qk_rope_head_dim)));
  c->softmax_scale = 1.0f / std::sqrt(static_cast<float>(c->qk_nope_head_dim + c->qk_rope_head_dim));

  const std::string type(keys.string("rope.scaling.type").value_or("none"));
  if (type == "none") return;
  const double factor = keys.real("rope.scaling.factor", 1e-3, 1e6);
  if (factor == 1.0) return;
  if (type == "linear") {
    for (float& f : c->rope_inv_freq) f = static_cast<float>(f / factor);
    return;
  }
  KIMI_CHECK(type == "yarn", ErrorKind::unsupported, "model.rope_scaling",
             "%s: rope.scaling.type is \"%s\", supported are none, linear and yarn", keys.path(), type.c_str());
  // YaRN: low frequencies are interpolated, high ones kept, with a ramp between the two correction dimensions.
  const int64_t original = keys.integer("rope.scaling.original_context_length", 1, int64_t{1} << 31);
  const double beta_fast = keys.find_real("rope.scaling.yarn_beta_fast", 0, 1e6).value_or(32.0);
  const double beta_slow = keys.find_real("rope.scaling.yarn_beta_slow", 0, 1e6).value_or(1.0);
  const auto correction_dim = [&](double rotations) {
    return static_cast<double>(c->qk_rope_head_dim) * std::log(static_cast<double>(original) / (rotations * 2 * M_PI)) /
           (2 * std::log(base));
  };
  const double low = std::max(0.0, std::floor(correction_dim(beta_fast)));
  double high = std::min(static_cast<double>(c->qk_rope_head_dim - 1), std::ceil(correction_dim(beta_slow)));
  if (high <= low) high = low + 0.001;
  for (int64_t j = 0; j < half; ++j) {
    const double ramp = std::min(1.0, std::max(0.0, (static_cast<double>(j) - low) / (high - low)));
    float& f = c->rope_inv_freq[static_cast<size_t>(j)];
    f = static_cast<float>(f / factor * ramp + f * (1 - ramp));
  }
  if (const auto multiplier = keys.find_real("rope.scaling.yarn_log_multiplier", -100, 100); multiplier && *multiplier != 0) {
    const double m = 1.0 + *multiplier * std::log(factor);
    c->softmax_scale = static_cast<float>(c->softmax_scale * m * m);
  } else {
    c->rope_mscale = static_cast<float>(1.0 + 0.1 * std::log(factor));
  }
}

}  // namespace

bool has_vision(const gguf::File& file) {
  for (const gguf::TensorInfo& tensor : file.tensors())
    if (tensor.name.rfind("v.", 0) == 0 || tensor.name.rfind("mm.", 0) == 0) return true;
  return false;
}

TextConfig read_text_config(const gguf::File& file) {
  const std::string arch = architecture(file);
  if (const auto type = file.get_string("general.type"); type && *type == "adapter")
    fail(ErrorKind::unsupported, "model.is_adapter",
         "%s: this is an adapter (LoRA), which holds changes to a model and not the model: merge it into its base model and "
         "convert the result",
         file.path().c_str());
  KIMI_CHECK(arch != "clip", ErrorKind::bad_model_file, "model.is_vision_file",
             "%s: this is a vision file (general.architecture is clip): give the text model as the model and this one as mmproj",
             file.path().c_str());
  KIMI_CHECK(
      arch == "deepseek2", ErrorKind::unsupported, "model.architecture",
      "%s: general.architecture is \"%s\", expected deepseek2 (Kimi-VL's text model): this program runs the Kimi-VL family only",
      file.path().c_str(), arch.c_str());
  constexpr int64_t kMaxWidth = 1 << 20, kMaxLayers = 1024;
  const Keys keys(file, "deepseek2.");
  TextConfig c{};
  // Keys with a default here are those whose absence means what every Kimi-VL has; any other is required.
  c.num_hidden_layers = keys.integer("block_count", 1, kMaxLayers);
  c.hidden_size = keys.integer("embedding_length", 1, kMaxWidth);
  c.max_position_embeddings = keys.integer("context_length", 1, int64_t{1} << 26);
  c.num_attention_heads = keys.integer("attention.head_count", 1, 4096);
  c.rms_norm_eps = static_cast<float>(keys.real("attention.layer_norm_rms_epsilon", 1e-12, 1.0));
  c.kv_lora_rank = keys.integer("attention.kv_lora_rank", 1, 65536);
  const int64_t q_lora_rank = keys.integer_or("attention.q_lora_rank", 0, 65536, 0);
  KIMI_CHECK(q_lora_rank == 0, ErrorKind::unsupported, "model.q_lora_rank",
             "%s: deepseek2.attention.q_lora_rank is %lld: Kimi-VL has plain queries, this is a larger DeepSeek model",
             file.path().c_str(), static_cast<long long>(q_lora_rank));
  c.legacy_kv_b = !keys.has("attention.key_length_mla");
  const char* suffix = c.legacy_kv_b ? "" : "_mla";
  const int64_t key_length = keys.integer(std::string("attention.key_length") + suffix, 1, 4096);
  c.v_head_dim = keys.integer(std::string("attention.value_length") + suffix, 1, 4096);
  c.qk_rope_head_dim = keys.integer("rope.dimension_count", 2, 1024);
  KIMI_CHECK(c.qk_rope_head_dim % 2 == 0 && c.qk_rope_head_dim < key_length, ErrorKind::bad_model_file, "model.key_range",
             "%s: deepseek2.rope.dimension_count is %lld, expected an even number below the key length %lld", file.path().c_str(),
             static_cast<long long>(c.qk_rope_head_dim), static_cast<long long>(key_length));
  c.qk_nope_head_dim = key_length - c.qk_rope_head_dim;
  read_rope(keys, &c);

  c.first_k_dense_replace = keys.integer("leading_dense_block_count", 0, c.num_hidden_layers);
  if (c.first_k_dense_replace > 0) c.intermediate_size = keys.integer("feed_forward_length", 1, kMaxWidth);
  if (c.first_k_dense_replace < c.num_hidden_layers) {
    c.n_routed_experts = keys.integer("expert_count", 1, 4096);
    c.num_experts_per_tok = keys.integer("expert_used_count", 1, c.n_routed_experts);
    c.n_shared_experts = keys.integer("expert_shared_count", 0, 256);
    c.moe_intermediate_size = keys.integer("expert_feed_forward_length", 1, kMaxWidth);
    c.routed_scaling_factor = static_cast<float>(keys.real("expert_weights_scale", -1e6, 1e6));
    c.norm_topk_prob = keys.boolean("expert_weights_norm").value_or(true);
    c.sigmoid_scores = keys.integer_or("expert_gating_func", 1, 2, 2) == 2;
    const int64_t groups = keys.integer_or("expert_group_count", 0, 4096, 1);
    KIMI_CHECK(
        groups <= 1, ErrorKind::unsupported, "model.expert_groups",
        "%s: deepseek2.expert_group_count is %lld: grouped routing belongs to larger DeepSeek models, Kimi-VL has one group",
        file.path().c_str(), static_cast<long long>(groups));
  }
  return c;
}

VisionConfig read_vision_config(const gguf::File& file, int64_t text_hidden_size) {
  const char* path = file.path().c_str();
  const Keys root(file, "clip."), keys(file, "clip.vision.");
  const auto type = root.string("projector_type");
  if (!type && architecture(file) == "deepseek2")
    fail(ErrorKind::bad_model_file, "model.is_text_file",
         "%s: this is a text model without vision: give the mmproj file that belongs to it", path);
  if (!type) root.missing("projector_type");
  KIMI_CHECK(*type == "kimivl" || *type == "kimik25", ErrorKind::unsupported, "model.projector_type",
             "%s: clip.projector_type is \"%.*s\", expected kimivl: this vision file belongs to another model", path,
             static_cast<int>(std::min<size_t>(type->size(), 64)), type->data());
  constexpr int64_t kMaxWidth = 1 << 16;
  VisionConfig c{};
  c.split_rope = *type == "kimik25";
  c.patch_size = keys.integer("patch_size", 1, 256);
  c.hidden_size = keys.integer("embedding_length", 4, kMaxWidth);
  c.intermediate_size = keys.integer("feed_forward_length", 1, kMaxWidth);
  c.num_hidden_layers = keys.integer("block_count", 1, 1024);
  c.num_attention_heads = keys.integer("attention.head_count", 1, 1024);
  keys.integer_or("image_size", 1, 1 << 20, 1);
  c.layer_norm_eps = static_cast<float>(keys.find_real("attention.layer_norm_epsilon", 1e-12, 1.0).value_or(1e-5));
  c.merge = keys.integer_or("projector.scale_factor", 1, 64, 2);
  KIMI_CHECK(c.merge == 2, ErrorKind::unsupported, "model.merge", "%s: clip.vision.projector.scale_factor is %lld, expected 2",
             path, static_cast<long long>(c.merge));
  KIMI_CHECK(
      c.hidden_size % c.num_attention_heads == 0 && c.hidden_size / c.num_attention_heads % 4 == 0, ErrorKind::bad_model_file,
      "model.key_range",
      "%s: clip.vision.embedding_length %lld over %lld heads: the size of a head must be a multiple of 4 (two rotated axes)",
      path, static_cast<long long>(c.hidden_size), static_cast<long long>(c.num_attention_heads));
  c.text_hidden_size = keys.integer("projection_dim", 1, 1 << 20);
  KIMI_CHECK(c.text_hidden_size == text_hidden_size, ErrorKind::bad_model_file, "model.projection_dim",
             "%s: clip.vision.projection_dim is %lld, but the text model has embeddings of %lld: the two files belong to "
             "different models",
             path, static_cast<long long>(c.text_hidden_size), static_cast<long long>(text_hidden_size));
  const auto triple = [&](const char* name, float* out) {
    const auto values = file.get_floats(std::string("clip.vision.") + name);
    for (int i = 0; i < 3; ++i) out[i] = 0.5f;
    if (!values) return;
    KIMI_CHECK(values->size() == 3, ErrorKind::bad_model_file, "model.key_range",
               "%s: key clip.vision.%s has %zu values, expected 3", path, name, values->size());
    for (int i = 0; i < 3; ++i) out[i] = static_cast<float>((*values)[static_cast<size_t>(i)]);
    for (int i = 0; i < 3; ++i)
      KIMI_CHECK(std::isfinite(out[i]) && (name[6] != 's' || out[i] > 0), ErrorKind::bad_model_file, "model.key_range",
                 "%s: key clip.vision.%s[%d] is %g", path, name, i, out[i]);
  };
  triple("image_mean", c.image_mean);
  triple("image_std", c.image_std);
  const gguf::TensorInfo* table = file.find_tensor("v.position_embd.weight");
  const int64_t positions = table ? table->ne[1] * table->ne[2] : 0;  // kimik25 files have [hidden, columns, rows]
  c.position_side = static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(positions))));
  KIMI_CHECK(table == nullptr || (positions > 0 && c.position_side * c.position_side == positions), ErrorKind::bad_model_file,
             "model.position_table", "%s: tensor v.position_embd.weight has %lld positions, expected a square grid", path,
             static_cast<long long>(positions));
  return c;
}

}  // namespace kimi
