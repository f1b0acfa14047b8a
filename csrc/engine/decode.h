// What Engine::decode does for one session: tokens appended, and the next ones sampled.
#pragma once
#include <cstdint>
#include <exception>
#include <vector>

#include "engine/sampler.h"
#include "engine/session.h"

namespace kimi {

struct DecodeRow {
  Session* session;
  // What is appended. With a sampler the first is the sequence's next token and the others are drafts of those after it: they
  // stay as far as the sampler agrees.
  std::vector<int32_t> tokens;
  Sampler* sampler = nullptr;      // nullptr: nothing is sampled
  std::vector<int32_t> sampled{};  // out: the tokens after the ones that stayed: 1 to tokens.size()
  std::exception_ptr error{};      // out: why nothing came of this row; its session is as it was
};

}  // namespace kimi
