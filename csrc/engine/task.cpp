#include "engine/task.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "engine/call.h"

namespace kimi {

bool ForwardTask::advance() {
  if (!begun_) begin();
  begun_ = true;
  if (!engine_.decoder_->advance(*engine_.backend_, &pass_)) return false;
  end();
  return true;
}

// Rows [first, first + n) of the parts.
void ForwardTask::add_parts(const std::vector<Part>& parts, int64_t first, int64_t n, std::vector<Part>* found) const {
  const int64_t hidden = engine_.text().hidden_size;
  int64_t start = 0;
  for (const Part& part : parts) {
    const int64_t from = std::max(first, start), to = std::min(first + n, start + part.n), at = from - start;
    if (from < to)
      found->push_back(
          {part.ids ? part.ids + at : nullptr, part.embeddings ? part.embeddings + at * hidden : nullptr, to - from});
    start += part.n;
  }
}

// Expanded rows first.
void ForwardTask::begin() {
  const int64_t vocab = engine_.text().vocab_size;
  pass_.begin();
  last_.resize(pieces_.size());
  for (const RowForm form : {RowForm::expanded, RowForm::absorbed}) {
    for (size_t p = 0; p < pieces_.size(); ++p) {
      const Piece& piece = pieces_[p];
      const Slice& slice = *piece.slice;
      const std::vector<RowForm>& forms = slice.forms;
      const bool wants_last = slice.want == Logits::last && piece.first + piece.n == slice.n();
      if (wants_last) last_[p].resize(static_cast<size_t>(vocab));
      DecoderSlice rows{slice.session->table_.view(), form, {}, {}, {}, slice.session->adapter_};
      for (int64_t i = piece.first, end = piece.first + piece.n; i < end;) {
        int64_t run = 1;
        while (i + run < end && forms[static_cast<size_t>(i + run)] == forms[static_cast<size_t>(i)]) ++run;
        if (forms[static_cast<size_t>(i)] == form) {
          add_parts(slice.parts, i, run, &rows.parts);
          for (int64_t r = i; r < i + run; ++r) {
            rows.positions.push_back(static_cast<int32_t>(slice.session->n_past_ + r - piece.first));
            if (slice.want == Logits::all) rows.logits.push_back(slice.logits + r * vocab);
            if (wants_last && r + 1 == end) rows.logits.push_back(last_[p].data());
          }
        }
        i += run;
      }
      if (!rows.positions.empty()) pass_.add(std::move(rows));
    }
  }
}

void ForwardTask::end() {
  const int64_t vocab = engine_.text().vocab_size;
  for (size_t p = 0; p < pieces_.size(); ++p) {
    const Piece& piece = pieces_[p];
    const Slice& slice = *piece.slice;
    slice.session->advance(piece.n);
    if (slice.want == Logits::all)
      last_[p].assign(slice.logits + (piece.first + piece.n - 1) * vocab, slice.logits + (piece.first + piece.n) * vocab);
    slice.session->logits_ = std::move(last_[p]);
    if (slice.want == Logits::last && slice.logits && !slice.session->logits_.empty())
      std::memcpy(slice.logits, slice.session->logits_.data(), static_cast<size_t>(vocab) * sizeof(float));
  }
}

bool SliceTask::advance() {
  const int64_t n = std::min(chunk_, slice_.n() - n_done_);
  if (!forward_) forward_.emplace(engine_, std::vector<Piece>{{&slice_, n_done_, n}});
  if (!forward_->advance()) return false;
  forward_.reset();
  n_done_ += n;
  return n_done_ == slice_.n();
}

TowerTask::TowerTask(Engine& engine, const Picture& picture, int32_t adapter, TowerOutput output, float* out)
    : engine_(engine), picture_(picture), adapter_(adapter), output_(output), out_(out) {}

int64_t TowerTask::n_total() const { return engine_.vision_config_->num_hidden_layers + 2; }

bool TowerTask::advance() {
  MoonVit& vit = *engine_.moonvit_;
  Backend& backend = *engine_.backend_;
  if (n_done_ == 0)
    vit.begin(backend, picture_, adapter_, &pass_);
  else if (n_done_ + 1 < n_total())
    vit.advance(backend, &pass_);
  else
    finish();
  return ++n_done_ == n_total();
}

void TowerTask::finish() {
  Backend& backend = *engine_.backend_;
  const float* features = engine_.moonvit_->finish(backend, &pass_);
  if (output_ == TowerOutput::features)
    backend.download(out_, features, pass_.n_patches() * engine_.vision_config_->hidden_size * int64_t{sizeof(float)});
  else
    engine_.projector_->run(backend, features, pass_.grid_h(), pass_.grid_w(), adapter_, out_);
}

bool Task::advance(int64_t n, Interrupt* interrupt) {
  KIMI_CHECK(n >= 1, ErrorKind::bad_request, "request.advance", "a task cannot advance by %lld steps, expected 1 or more",
             static_cast<long long>(n));
  const Engine::Call call(*engine_, interrupt);
  KIMI_CHECK(state_ != State::ended, ErrorKind::bad_request, "task.ended",
             "the task was cancelled or has failed: begin another one");
  try {
    while (state_ == State::running && n-- > 0)
      if (step()) end(State::done);
  } catch (...) {
    end(State::ended);
    throw;
  }
  return done();
}

void Task::cancel() {
  engine_->between_calls([&] {
    if (state_ == State::running) end(State::ended);
  });
}

void Task::end(State state) {
  release();
  state_ = state;
}

PrefillTask::PrefillTask(std::shared_ptr<Engine> engine, Slice slice, int64_t chunk)
    : Task(std::move(engine)), session_(slice.session) {
  engine_->between_calls([&] {
    engine_->check_slice(slice);
    if (slice.forms.empty()) slice.forms = forms_of_pages(session_->n_past_, slice.n());
    const int64_t rows = Engine::checked_chunk(chunk);
    const int64_t n = slice.n();
    work_.emplace(*engine_, std::move(slice), rows);
    session_->reserve(n);
    session_->busy_ = true;
  });
}

bool PrefillTask::step() {
  const bool done = work_->advance();
  n_done_ = work_->n_done();
  return done;
}

void PrefillTask::release() {
  work_.reset();
  session_->busy_ = false;
  session_->drop(session_->n_past_);
}

ImageTask::ImageTask(std::shared_ptr<Engine> engine, const Picture& picture, int32_t adapter, float* out)
    : Task(std::move(engine)) {
  engine_->check_adapter(adapter);
  work_.emplace(*engine_, picture, adapter, TowerOutput::embeddings, out);
}

}  // namespace kimi
