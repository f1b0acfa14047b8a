#include "engine/engine.h"

#include <algorithm>
#include <cstdlib>

#include "base/error.h"
#include "engine/call.h"
#include "engine/task.h"

namespace kimi {

Engine::Engine(const std::string& path, const EngineOptions& options)
    : file_(gguf::File::open(path)), text_config_(read_text_config(file_)) {
  fork_generation_ = fork_generation();
  backend_ = make_backend(options.backend, options.backend_options);
  text_weights_ = load_text_weights(file_, &text_config_, &store_);
  place(*backend_, text_config_, &text_weights_);
  if (!options.mmproj.empty()) vision_file_ = gguf::File::open(options.mmproj);
  const gguf::File& vision_source = vision_file_ ? *vision_file_ : file_;
  if (vision_file_ || has_vision(file_)) {
    vision_config_ = read_vision_config(vision_source, text_config_.hidden_size);
    vision_weights_ = load_vision_weights(vision_source, *vision_config_, &store_);
    place(*backend_, &*vision_weights_);
    const ComputeType compute_type = picture_compute_type();
    moonvit_.emplace(*vision_config_, *vision_weights_, compute_type);
    projector_.emplace(*vision_config_, *vision_weights_, compute_type);
  }
  decoder_.emplace(text_config_, text_weights_);
  for (const gguf::File* file : {&file_, vision_file_ ? &*vision_file_ : nullptr})
    if (file) store_.warnings.insert(store_.warnings.end(), file->warnings().begin(), file->warnings().end());
  read_ahead_.emplace(layers_in_order());
}

// The order in which a prompt needs them: the picture's tower, the layers, the output. Of the embedding table a prompt needs
// rows.
std::vector<ReadAhead::Range> Engine::layers_in_order() const {
  struct Entry {
    int64_t order;
    ReadAhead::Range range;
  };
  std::vector<Entry> entries;
  const auto add = [&](const gguf::File& file) {
    for (const gguf::TensorInfo& tensor : file.tensors()) {
      if (!tensor.data || tensor.name == "token_embd.weight") continue;
      int64_t order = text_config_.num_hidden_layers;
      if (tensor.name.rfind("blk.", 0) == 0) order = std::atoll(tensor.name.c_str() + 4);
      if (tensor.name.rfind("v.", 0) == 0 || tensor.name.rfind("mm.", 0) == 0) order = -1;
      entries.push_back({order, {tensor.data, tensor.n_bytes}});
    }
  };
  if (vision_file_) add(*vision_file_);
  add(file_);
  std::stable_sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.order < b.order; });
  std::vector<ReadAhead::Range> ranges;
  for (const Entry& entry : entries) ranges.push_back(entry.range);
  return ranges;
}

KvType Engine::default_kv_type() const {
  const auto& layer = text_weights_.layers.front();
  return layer.attn_q.type == quant::Type::F32 && layer.attn_output.type == quant::Type::F32 ? KvType::f32 : KvType::f16;
}

KvPageLayout Engine::page_layout(std::optional<KvType> kv_type) const {
  const KvType type = kv_type.value_or(default_kv_type());
  return {type, text_config_.num_hidden_layers, KvRow(type, text_config_.kv_lora_rank, text_config_.qk_rope_head_dim).bytes};
}

std::shared_ptr<PagePool> Engine::pool_with_budget(std::optional<KvType> kv_type, int64_t budget) const {
  return PagePool::with_budget(backend_, page_layout(kv_type), budget);
}

std::shared_ptr<PagePool> Engine::pool_for_context(std::optional<KvType> kv_type, int64_t n_ctx) const {
  return PagePool::without_budget(backend_, page_layout(kv_type), (n_ctx + kPagePositions - 1) / kPagePositions);
}

// Beside a text that multiplies bytes, the tower multiplies bf16, as the checkpoint itself is meant to be run; files of floats,
// and callers who ask for floats, get floats.
ComputeType Engine::picture_compute_type() const {
  const bool bytes = !quant::format_of(text_weights_.layers.front().attn_output.type).is_float();
  const bool floats = vision_weights_->blocks.front().ffn_up.type == quant::Type::F32;
  return bytes && !floats && backend_->rounds_activations() ? ComputeType::bf16 : ComputeType::f32;
}

const VisionConfig& Engine::require_vision() const {
  KIMI_CHECK(vision_config_, ErrorKind::unsupported, "model.no_vision",
             "%s: this model was opened without its vision part: give the mmproj file that belongs to it to ask about pictures",
             file_.path().c_str());
  return *vision_config_;
}

int32_t Engine::add_adapter(const std::vector<AdapterFactors>& changes) {
  int32_t added = kNoAdapter;
  between_calls(
      [&] { added = adapters_.add(*backend_, changes, &text_weights_, vision_weights_ ? &*vision_weights_ : nullptr); });
  return added;
}

void Engine::check_adapter(int32_t adapter) const {
  KIMI_CHECK(adapter >= kNoAdapter && adapter < adapters_.size(), ErrorKind::bad_request, "request.adapter",
             "adapter is %d, expected -1 for none, or one of the %d that were added", adapter, adapters_.size());
}

void Engine::run_tower(const Picture& picture, int32_t adapter, TowerOutput output, const Progress& progress,
                       Interrupt* interrupt, float* out) {
  check_adapter(adapter);
  TowerTask task(*this, picture, adapter, output, out);
  const Call call(*this, interrupt);
  do {
    if (progress) progress(task.n_done(), task.n_total());
  } while (!task.advance());
  if (progress) progress(task.n_done(), task.n_total());
}

void Engine::vision_tower(const Picture& picture, int32_t adapter, const Progress& progress, Interrupt* interrupt, float* out) {
  run_tower(picture, adapter, TowerOutput::features, progress, interrupt, out);
}

void Engine::encode_image(const Picture& picture, int32_t adapter, const Progress& progress, Interrupt* interrupt, float* out) {
  run_tower(picture, adapter, TowerOutput::embeddings, progress, interrupt, out);
}

void Engine::between_calls(const std::function<void()>& body) {
  const Call call(*this, nullptr);
  body();
}

void Engine::observe(const InputObserver* current, InputObserver* observer) {
  between_calls([&] {
    KIMI_CHECK(observer_ == current, ErrorKind::bad_request, "importance.busy",
               "another importance matrix of this model is being made: close it first");
    observer_ = observer;
    backend_->set_observer(observer);
  });
}

}  // namespace kimi
