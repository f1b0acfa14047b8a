// Engine::decode: one step of many sessions, in which each succeeds or fails for itself.
#include "engine/decode.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "engine/call.h"

namespace kimi {
namespace {

// Room for the row's tokens; for fewer drafts where all of them do not fit.
void reserve_drafts(DecodeRow* row, const std::function<void(int64_t)>& reserve) {
  const Session& session = *row->session;
  const int64_t room = session.n_ctx() - session.n_past(), n = static_cast<int64_t>(row->tokens.size());
  if (row->sampler && room > 0) row->tokens.resize(static_cast<size_t>(std::min(n, room)));
  try {
    reserve(static_cast<int64_t>(row->tokens.size()));
  } catch (const Error& error) {
    if (!row->sampler || row->tokens.size() == 1 || error.kind() != ErrorKind::out_of_memory) throw;
    row->tokens.resize(1);
    reserve(1);
  }
}

// The sampler's tokens after each of the tokens that stay, from logits [n, vocab].
void sample_row(DecodeRow* row, const float* logits, int64_t vocab) {
  for (size_t i = 0; i < row->tokens.size(); ++i) {
    const int32_t token = row->sampler->sample({logits + static_cast<int64_t>(i) * vocab, static_cast<size_t>(vocab)});
    row->sampler->accept(token);
    row->sampled.push_back(token);
    if (i + 1 < row->tokens.size() && row->tokens[i + 1] != token) return;
  }
}

}  // namespace

void Engine::decode(std::vector<DecodeRow>& rows, Interrupt* interrupt) {
  const int64_t vocab = text_config_.vocab_size;
  const Call call(*this, interrupt);
  struct Ready {
    std::vector<DecodeRow*> rows;
    ~Ready() {
      for (DecodeRow* row : rows) row->session->drop(row->session->n_past());
    }
  } ready;
  for (DecodeRow& row : rows) {
    try {
      for (const DecodeRow* other : ready.rows)
        KIMI_CHECK(row.session != other->session && (!row.sampler || row.sampler != other->sampler), ErrorKind::bad_request,
                   "request.session", "a session or a sampler appears twice in one step");
      reserve_drafts(&row, [&](int64_t n) {
        check_slice({row.session, {{row.tokens.data(), nullptr, n}}});
        row.session->reserve(n);
      });
      ready.rows.push_back(&row);
    } catch (...) {
      row.error = std::current_exception();
    }
  }
  if (ready.rows.empty()) return;

  step_pass_.begin();
  for (DecodeRow* row : ready.rows) {
    const auto n = static_cast<int64_t>(row->tokens.size()), n_logits = row->sampler ? n : 1;
    Session& session = *row->session;
    session.new_logits_.resize(static_cast<size_t>(n_logits * vocab));
    DecoderSlice slice{session.table_.view(), RowForm::absorbed, {{row->tokens.data(), nullptr, n}}, {}, {}, session.adapter_};
    for (int64_t i = 0; i < n; ++i) slice.positions.push_back(static_cast<int32_t>(session.n_past() + i));
    for (int64_t i = 0; i < n_logits; ++i) slice.logits.push_back(session.new_logits_.data() + i * vocab);
    step_pass_.add(std::move(slice));
  }
  decoder_->finish(*backend_, &step_pass_);

  backend_->set_interrupt(nullptr);  // from here on all rows are finished
  backend_->for_each(static_cast<int64_t>(ready.rows.size()), [&](int64_t r) {
    DecodeRow& row = *ready.rows[static_cast<size_t>(r)];
    Session& session = *row.session;
    if (row.sampler) {
      try {
        sample_row(&row, session.new_logits_.data(), vocab);
      } catch (...) {  // a draft's row: what was sampled before it counts
        if (row.sampled.empty()) row.error = std::current_exception();
      }
      if (row.error) return;
    }
    const auto n = static_cast<int64_t>(row.sampler ? row.sampled.size() : row.tokens.size());
    session.advance(n);
    session.logits_.swap(session.new_logits_);
    if (row.sampler && n > 1)
      std::memcpy(session.logits_.data(), session.logits_.data() + (n - 1) * vocab, static_cast<size_t>(vocab) * sizeof(float));
    session.logits_.resize(static_cast<size_t>(vocab));
  });
}

}  // namespace kimi
