#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace kimi {

// Holds the engine for one call and lends the backend the caller's interrupt.
class Engine::Call {
 public:
  Call(Engine& engine, Interrupt* interrupt) : engine_(engine) {
    if (engine.fork_generation_ != fork_generation()) {  // a thread of the parent may hold the old one for ever
      static_cast<void>(engine.mutex_.release());
      engine.mutex_ = std::make_unique<std::mutex>();
      engine.fork_generation_ = fork_generation();
    }
    engine.mutex_->lock();
    engine.backend_->set_interrupt(interrupt);
  }
  ~Call() {
    engine_.backend_->set_interrupt(nullptr);
    engine_.mutex_->unlock();
  }

 private:
  Engine& engine_;
};

Engine::Engine(const std::string& path, const EngineOptions& options)
    : file_(gguf::File::open(path)), text_config_(read_text_config(file_)) {
  fork_generation_ = fork_generation();
  backend_ = make_cpu_backend(options.cpu);
  text_weights_ = load_text_weights(file_, &text_config_, &store_);
  if (!options.mmproj.empty()) vision_file_ = gguf::File::open(options.mmproj);
  const gguf::File& vision_source = vision_file_ ? *vision_file_ : file_;
  if (vision_file_ || has_vision(file_)) {
    vision_config_ = read_vision_config(vision_source, text_config_.hidden_size);
    vision_weights_ = load_vision_weights(vision_source, *vision_config_, &store_);
    moonvit_.emplace(*vision_config_, *vision_weights_, picture_numbers(options.cpu.float_activations));
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

// Beside a text that multiplies bytes, the tower multiplies bf16, as the checkpoint itself is meant to be run; files of floats,
// and callers who ask for floats, get floats.
Numbers Engine::picture_numbers(bool float_activations) const {
  const bool bytes = !quant::format_of(text_weights_.layers.front().attn_output.type).is_float();
  const bool floats = vision_weights_->blocks.front().ffn_up.type == quant::Type::F32;
  return bytes && !floats && !float_activations ? Numbers::bf16 : Numbers::floats;
}

MoonVit& Engine::require_vision() {
  KIMI_CHECK(moonvit_, ErrorKind::unsupported, "model.no_vision",
             "%s: this model was opened without its vision part: give the mmproj file that belongs to it to ask about pictures",
             file_.path().c_str());
  return *moonvit_;
}

void Engine::vision_tower(const Pixels& pixels, const Progress& progress, Interrupt* interrupt, float* out) {
  MoonVit& vit = require_vision();
  const Call call(*this, interrupt);
  vit.tower(*backend_, pixels, progress, out);
}

void Engine::encode_image(const Pixels& pixels, const Progress& progress, Interrupt* interrupt, float* out) {
  MoonVit& vit = require_vision();
  check_pixels(*vision_config_, pixels);
  const Call call(*this, interrupt);
  AlignedBuffer<float> features(static_cast<size_t>(count_patches(*vision_config_, pixels) * vision_config_->hidden_size));
  vit.tower(*backend_, pixels, progress, features.data());
  vit.project(*backend_, features.data(), pixels.height / vision_config_->patch_size, pixels.width / vision_config_->patch_size,
              out);
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

void Engine::check_slices(const std::vector<Slice>& slices) const {
  std::vector<const Session*> seen;
  for (const Slice& slice : slices) {
    KIMI_CHECK(slice.session && slice.session->engine_.get() == this, ErrorKind::bad_request, "request.session",
               "a slice's session belongs to another model");
    KIMI_CHECK(std::find(seen.begin(), seen.end(), slice.session) == seen.end(), ErrorKind::bad_request, "request.session",
               "a session appears twice in one step");
    seen.push_back(slice.session);
    int64_t n = 0;
    for (const Part& part : slice.parts) {
      for (int64_t i = 0; part.ids && i < part.n; ++i)
        KIMI_CHECK(part.ids[i] >= 0 && part.ids[i] < text_config_.vocab_size, ErrorKind::bad_request, "request.token_id",
                   "token id %d at position %lld, expected 0 to %lld", part.ids[i], static_cast<long long>(n + i),
                   static_cast<long long>(text_config_.vocab_size - 1));
      for (int64_t i = 0; part.embeddings && i < part.n * text_config_.hidden_size; ++i)
        KIMI_CHECK(std::isfinite(part.embeddings[i]), ErrorKind::bad_request, "request.embedding",
                   "embedding of position %lld has a value that is not finite",
                   static_cast<long long>(n + i / text_config_.hidden_size));
      n += part.n;
    }
    const Session& session = *slice.session;
    KIMI_CHECK(n > 0, ErrorKind::bad_request, "request.empty", "a step needs at least one token");
    KIMI_CHECK(slice.forms.empty() || static_cast<int64_t>(slice.forms.size()) == n, ErrorKind::bad_request, "request.forms",
               "forms of %lld rows were given for %lld new tokens", static_cast<long long>(slice.forms.size()),
               static_cast<long long>(n));
    KIMI_CHECK(n <= session.n_ctx() - session.n_past_, ErrorKind::context_full, "context.full",
               "%lld new tokens after %lld do not fit the context of %lld: use a larger context (n_ctx), a shorter text or "
               "smaller pictures",
               static_cast<long long>(n), static_cast<long long>(session.n_past_), static_cast<long long>(session.n_ctx()));
  }
}

// Rows [first, first + n) of the slice's parts as embeddings.
void Engine::fill_rows(const Slice& slice, int64_t first, int64_t n, float* out) {
  const int64_t hidden = text_config_.hidden_size;
  int64_t start = 0;
  for (const Part& part : slice.parts) {
    const int64_t from = std::max(first, start), to = std::min(first + n, start + part.n);
    if (from < to) {
      float* rows = out + (from - first) * hidden;
      if (part.ids)
        decoder_->embed(*backend_, part.ids + (from - start), to - from, rows);
      else
        std::memcpy(rows, part.embeddings + (from - start) * hidden, static_cast<size_t>((to - from) * hidden) * sizeof(float));
    }
    start += part.n;
  }
}

int64_t Slice::n() const {
  int64_t total = 0;
  for (const Part& part : parts) total += part.n;
  return total;
}

std::vector<RowForm> forms_of_pages(int64_t n_past, int64_t n) {
  std::vector<RowForm> forms(static_cast<size_t>(n), RowForm::absorbed);
  const int64_t first = (n_past + kPagePositions - 1) / kPagePositions * kPagePositions,
                end = (n_past + n) / kPagePositions * kPagePositions;
  if (first < end) std::fill(forms.begin() + (first - n_past), forms.begin() + (end - n_past), RowForm::expanded);
  return forms;
}

// One pass over the weights for all pieces, their expanded rows first.
void Engine::forward(const std::vector<Piece>& pieces) {
  const int64_t vocab = text_config_.vocab_size, hidden = text_config_.hidden_size;
  int64_t n_rows = 0;
  for (const Piece& piece : pieces) n_rows += piece.n;
  float* input = decoder_->input(n_rows);
  std::vector<DecoderSlice> slices;
  std::vector<std::vector<float>> last(pieces.size());
  for (const RowForm form : {RowForm::expanded, RowForm::absorbed}) {
    for (size_t p = 0; p < pieces.size(); ++p) {
      const Piece& piece = pieces[p];
      const Slice& slice = *piece.slice;
      const std::vector<RowForm>& forms = slice.forms;
      const bool wants_last = slice.want == Logits::last && piece.first + piece.n == slice.n();
      if (wants_last) last[p].resize(static_cast<size_t>(vocab));
      DecoderSlice rows{&slice.session->cache_, {}, form, {}};
      for (int64_t i = piece.first, end = piece.first + piece.n; i < end;) {
        int64_t run = 1;
        while (i + run < end && forms[static_cast<size_t>(i + run)] == forms[static_cast<size_t>(i)]) ++run;
        if (forms[static_cast<size_t>(i)] == form) {
          fill_rows(slice, i, run, input);
          input += run * hidden;
          for (int64_t r = i; r < i + run; ++r) {
            rows.positions.push_back(static_cast<int32_t>(slice.session->n_past_ + r - piece.first));
            if (slice.want == Logits::all) rows.logits.push_back(slice.logits + r * vocab);
            if (wants_last && r + 1 == end) rows.logits.push_back(last[p].data());
          }
        }
        i += run;
      }
      if (!rows.positions.empty()) slices.push_back(std::move(rows));
    }
  }
  decoder_->forward(*backend_, slices);
  for (size_t p = 0; p < pieces.size(); ++p) {
    const Piece& piece = pieces[p];
    const Slice& slice = *piece.slice;
    slice.session->n_past_ += piece.n;
    if (slice.want == Logits::all)
      last[p].assign(slice.logits + (piece.first + piece.n - 1) * vocab, slice.logits + (piece.first + piece.n) * vocab);
    if (last[p].empty()) continue;
    slice.session->logits_ = std::move(last[p]);
    if (slice.want == Logits::last && slice.logits)
      std::memcpy(slice.logits, slice.session->logits_.data(), static_cast<size_t>(vocab) * sizeof(float));
  }
}

// Short slices share passes over the weights; a long one, whose chunks are worth a pass of their own, goes alone.
void Engine::step(std::vector<Slice>& slices, int64_t chunk, const Progress& progress, Interrupt* interrupt) {
  constexpr int64_t kShort = 4;
  KIMI_CHECK(chunk >= 0, ErrorKind::bad_request, "request.chunk",
             "chunk is %lld, expected a positive number of tokens, or 0 for the default", static_cast<long long>(chunk));
  if (chunk == 0) chunk = kDefaultChunk;
  const Call call(*this, interrupt);
  check_slices(slices);
  std::vector<Piece> shared;
  for (Slice& slice : slices) {
    const int64_t n = slice.n();
    if (slice.forms.empty()) slice.forms = forms_of_pages(slice.session->n_past_, n);
    if (n <= std::min(chunk, kShort)) {
      shared.push_back({&slice, 0, n});
      continue;
    }
    for (int64_t first = 0; first < n; first += chunk) {
      if (progress) progress(first, n);
      forward({{&slice, first, std::min(chunk, n - first)}});
    }
    if (progress) progress(n, n);
  }
  if (!shared.empty()) forward(shared);
}

int64_t Session::checked_context(const Engine& engine, int64_t n_ctx) {
  KIMI_CHECK(n_ctx >= 1 && n_ctx <= engine.text().max_position_embeddings, ErrorKind::bad_request, "request.n_ctx",
             "n_ctx is %lld, expected 1 to %lld (the model's context)", static_cast<long long>(n_ctx),
             static_cast<long long>(engine.text().max_position_embeddings));
  return n_ctx;
}

Session::Session(std::shared_ptr<Engine> engine, int64_t n_ctx, std::optional<KvType> kv_type)
    : engine_(std::move(engine)),
      cache_(engine_->text().num_hidden_layers, checked_context(*engine_, n_ctx), engine_->text().kv_lora_rank,
             engine_->text().qk_rope_head_dim, kv_type.value_or(engine_->default_kv_type())) {}

void Session::truncate(int64_t n_past) {
  KIMI_CHECK(n_past >= 0 && n_past <= n_past_, ErrorKind::bad_request, "request.n_past",
             "cannot truncate to %lld tokens, the session has %lld", static_cast<long long>(n_past),
             static_cast<long long>(n_past_));
  if (n_past != n_past_) logits_.clear();
  n_past_ = n_past;
}

}  // namespace kimi
