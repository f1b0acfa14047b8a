// Work that goes on where it stopped: between two advances any other calls and tasks of the engine may run, and the bits are
// those of work that was never interrupted.
//   ForwardTask  pieces of slices through the decoder, a layer at a time
//   SliceTask    a slice, chunk by chunk
//   TowerTask    a picture: its patches, then a block at a time, then the final norm or the projector
// These run inside a call, which holds the engine. For callers between calls:
//   PrefillTask, ImageTask   every advance is a call of its own
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "engine/session.h"

namespace kimi {

// Rows [first, first + n) of a slice, which follow what its session holds.
struct Piece {
  Slice* slice;
  int64_t first, n;
};

// One pass over the weights for all pieces, of different slices.
class ForwardTask {
 public:
  ForwardTask(Engine& engine, std::vector<Piece> pieces) : engine_(engine), pieces_(std::move(pieces)) {}
  // -> whether that was the last layer: the sessions then hold the rows, and the logits are where the slices want them.
  bool advance();
  void finish() {
    while (!advance()) continue;
  }

 private:
  void begin();
  void end();
  void add_parts(const std::vector<Part>& parts, int64_t first, int64_t n, std::vector<Part>* found) const;
  Engine& engine_;
  std::vector<Piece> pieces_;
  bool begun_ = false;
  DecoderPass pass_;
  std::vector<std::vector<float>> last_;  // of each piece: the logits of its slice's last row, where they are wanted
};

class SliceTask {
 public:
  // slice: checked, with forms, and pages reserved.
  SliceTask(Engine& engine, Slice slice, int64_t chunk) : engine_(engine), slice_(std::move(slice)), chunk_(chunk) {}
  bool advance();                             // -> whether that was all of it
  int64_t n_done() const { return n_done_; }  // rows in chunks that are whole

 private:
  Engine& engine_;
  Slice slice_;
  const int64_t chunk_;
  int64_t n_done_ = 0;
  std::optional<ForwardTask> forward_;  // of the chunk under way
};

enum class TowerOutput { features, embeddings };

class TowerTask {
 public:
  // picture: of the engine's config. out: [n_patches, vision hidden_size] features, or embeddings [n_patches / merge^2,
  // hidden_size]. Its pixels are read by the first advance only.
  TowerTask(Engine& engine, const Picture& picture, int32_t adapter, TowerOutput output, float* out);
  bool advance();                             // -> whether that was all of it
  int64_t n_done() const { return n_done_; }  // of n_total() advances
  int64_t n_total() const;

 private:
  void finish();
  Engine& engine_;
  const Picture picture_;
  const int32_t adapter_;
  const TowerOutput output_;
  float* const out_;
  int64_t n_done_ = 0;
  TowerPass pass_;
};

// What PrefillTask and ImageTask share: an end, after which nothing runs.
class Task {
 public:
  virtual ~Task() = default;
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;
  // Up to n steps. -> whether all is done. An error ends the task. Throws Error(bad_request, "task.ended") after an error or a
  // cancel, and Error(cancelled) when the interrupt asks for it.
  bool advance(int64_t n, Interrupt* interrupt);
  bool done() const { return state_ == State::done; }
  // Gives back what the task holds. Harmless at any time.
  void cancel();

 protected:
  explicit Task(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  virtual bool step() = 0;     // within a call
  virtual void release() = 0;  // the same; once
  const std::shared_ptr<Engine> engine_;

 private:
  enum class State { running, done, ended };
  void end(State state);
  std::atomic<State> state_ = State::running;
};

// A slice through the decoder, a layer of a chunk at a time. The session holds whole chunks. Until the end it is the task's: any
// other use of it throws Error(bad_request, "session.busy").
class PrefillTask final : public Task {
 public:
  // Throws what Engine::step would, before any work. The session, and what the slice points to, must outlive the task.
  PrefillTask(std::shared_ptr<Engine> engine, Slice slice, int64_t chunk);
  ~PrefillTask() override { cancel(); }
  int64_t n_done() const { return n_done_; }  // new positions that the session holds

 private:
  bool step() override;
  void release() override;
  std::optional<SliceTask> work_;
  Session* session_;
  std::atomic<int64_t> n_done_ = 0;
};

// A picture through the tower and the projector.
class ImageTask final : public Task {
 public:
  // The picture's pixels and out must outlive the task; TowerTask says what they are.
  ImageTask(std::shared_ptr<Engine> engine, const Picture& picture, int32_t adapter, float* out);
  ~ImageTask() override { cancel(); }

 private:
  bool step() override { return work_->advance(); }
  void release() override { work_.reset(); }
  std::optional<TowerTask> work_;
};

}  // namespace kimi
