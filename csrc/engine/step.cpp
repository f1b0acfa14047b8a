// Engine::step: a batch of slices through the decoder.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "engine/call.h"
#include "engine/session.h"
#include "engine/task.h"

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
  session.check_free();
  session.check_room(n);
  KIMI_CHECK(slice.forms.empty() || static_cast<int64_t>(slice.forms.size()) == n, ErrorKind::bad_request, "request.forms",
             "forms of %lld rows were given for %lld new tokens", static_cast<long long>(slice.forms.size()),
             static_cast<long long>(n));
}

int64_t Engine::checked_chunk(int64_t chunk) {
  KIMI_CHECK(chunk >= 0, ErrorKind::bad_request, "request.chunk",
             "chunk is %lld, expected a positive number of tokens, or 0 for the default", static_cast<long long>(chunk));
  return chunk == 0 ? kDefaultChunk : chunk;
}

// Short slices share passes over the weights; a long one, whose chunks are worth a pass of their own, goes alone.
void Engine::step(std::vector<Slice>& slices, int64_t chunk, const Progress& progress, Interrupt* interrupt) {
  constexpr int64_t kShort = 4;
  chunk = checked_chunk(chunk);
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
    SliceTask task(*this, slice, chunk);
    if (progress) progress(0, n);
    for (int64_t reported = 0; reported < n;) {
      task.advance();
      if (task.n_done() > reported && progress) progress(task.n_done(), n);
      reported = task.n_done();
    }
  }
  if (!shared.empty()) ForwardTask(*this, shared).finish();
}

}  // namespace kimi
