// Engine: files, weights and a backend, immutable once open but for adapters, which are added beside the weights.
// Speaks ids, embeddings, pixels and logits; text and image files are Python's.
//
// Calls of several threads on one engine are served one after another.
#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/registry.h"
#include "engine/read_ahead.h"
#include "gguf/gguf.h"
#include "model/adapter.h"
#include "model/config.h"
#include "model/decoder.h"
#include "model/kv_pages.h"
#include "model/moonvit.h"
#include "model/projector.h"
#include "model/weights.h"

namespace kimi {

struct EngineOptions {
  std::string mmproj;           // empty: none, or vision inside the text file
  std::string backend = "cpu";  // one of backend_names()
  BackendOptions backend_options{};
};

class Session;
struct Slice;
struct DecodeRow;
enum class TowerOutput;

using Progress = std::function<void(int64_t done, int64_t total)>;

class Engine {
 public:
  Engine(const std::string& path, const EngineOptions& options);

  const TextConfig& text() const { return text_config_; }
  const VisionConfig* vision() const { return vision_config_ ? &*vision_config_ : nullptr; }
  const gguf::File& file() const { return file_; }
  const gguf::File* vision_file() const { return vision_file_ ? &*vision_file_ : vision() ? &file_ : nullptr; }
  const std::vector<std::string>& warnings() const { return store_.warnings; }
  const std::vector<WeightInfo>& weights() const { return store_.weights; }  // by Matrix::weight
  const Backend& backend() const { return *backend_; }
  // An adapter for sessions and pictures to name. Throws what Adapters::add does, and Error(unsupported, "lora.backend").
  int32_t add_adapter(const std::vector<AdapterFactors>& changes);
  const Adapters& adapters() const { return adapters_; }
  void check_adapter(int32_t adapter) const;  // kNoAdapter, or one that was added
  KvType default_kv_type() const;             // f16; f32 for float32 weights
  KvPageLayout page_layout(std::optional<KvType> kv_type) const;
  // Pools for the pages of sessions: PagePool::with_budget, and PagePool::without_budget for n_ctx positions at most.
  std::shared_ptr<PagePool> pool_with_budget(std::optional<KvType> kv_type, int64_t budget) const;
  std::shared_ptr<PagePool> pool_for_context(std::optional<KvType> kv_type, int64_t n_ctx) const;
  ComputeType picture_compute_type() const;

  // What a Picture is made with. Throws Error(unsupported, "model.no_vision") when the model came without a vision file.
  const VisionConfig& require_vision() const;
  void vision_tower(const Picture& picture, int32_t adapter, const Progress& progress, Interrupt* interrupt, float* out);
  void encode_image(const Picture& picture, int32_t adapter, const Progress& progress, Interrupt* interrupt, float* out);

  // One step of several sessions. Everything is checked before anything is computed. A slice larger than `chunk` advances its
  // session chunk by chunk, so that an interrupt leaves whole chunks behind. The bits of a row follow from the rows before it in
  // its sequence and their forms: not from chunks, from what else is in the batch, or from the calls in which the sequence grew.
  void step(std::vector<Slice>& slices, int64_t chunk, const Progress& progress, Interrupt* interrupt);

  // One step of several sessions, in which a row that fails says why in its place and the others go on. Tokens are sampled in
  // parallel. The bits of logits, and so the tokens, are those of one session alone, with or without drafts.
  void decode(std::vector<DecodeRow>& rows, Interrupt* interrupt);

  // Runs `body` while no call is under way.
  void between_calls(const std::function<void()>& body);
  // Shows what weights are multiplied with to `observer`, from the next call on, instead of to `current` (nullptr: none). Throws
  // Error(bad_request, "importance.busy") when the observer is another.
  void observe(const InputObserver* current, InputObserver* observer);

 private:
  class Call;
  friend class Task;
  friend class ForwardTask;
  friend class PrefillTask;
  friend class TowerTask;
  friend class ImageTask;
  void run_tower(const Picture& picture, int32_t adapter, TowerOutput output, const Progress& progress, Interrupt* interrupt,
                 float* out);
  std::vector<ReadAhead::Range> layers_in_order() const;
  void check_slice(const Slice& slice) const;
  static int64_t checked_chunk(int64_t chunk);

  gguf::File file_;
  std::optional<gguf::File> vision_file_;
  TextConfig text_config_;
  std::optional<VisionConfig> vision_config_;
  WeightStore store_;
  TextWeights text_weights_;
  std::optional<VisionWeights> vision_weights_;
  Adapters adapters_;
  std::shared_ptr<Backend> backend_;  // with the pools, which may outlive the engine
  std::optional<Decoder> decoder_;
  DecoderPass step_pass_;  // of decode: its memory stays where it is
  std::optional<MoonVit> moonvit_;
  std::optional<Projector> projector_;
  const InputObserver* observer_ = nullptr;
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();
  int fork_generation_ = 0;
  std::optional<ReadAhead> read_ahead_;  // last: it stops before the files are unmapped
};

constexpr int64_t kDefaultChunk = 2048;  // each unpacks all weights and expands all keys once more

}  // namespace kimi
