// Engine::step: a batch of slices through the decoder.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "engine/call.h"
#include "engine/session.h"

namespace kimi {

void Engine::check_slice(const Slice& slice) const {
  KIMI_CHECK(slice.session && slice.session->engine_.get() == this, ErrorKind::bad_request, "request.session",
             "a slice's session belongs to another model");
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
             static_cast<long long>(n), static_cast<long long>(session.n_past()), static_cast<long long>(session.n_ctx()));
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
      DecoderSlice rows{&slice.session->table_, {}, form, {}};
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
    slice.session->advance(piece.n);
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
  std::vector<const Session*> seen;
  for (const Slice& slice : slices) {
    check_slice(slice);
    KIMI_CHECK(std::find(seen.begin(), seen.end(), slice.session) == seen.end(), ErrorKind::bad_request, "request.session",
               "a session appears twice in one step");
    seen.push_back(slice.session);
  }
  struct Reserved {  // what an error or an interrupt leaves unused goes back
    const std::vector<Slice>& slices;
    ~Reserved() {
      for (const Slice& slice : slices) slice.session->drop(slice.session->n_past_);
    }
  } const reserved{slices};
  for (const Slice& slice : slices) slice.session->reserve(slice.n());
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

}  // namespace kimi
