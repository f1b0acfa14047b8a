// Samples the next token. Has its own random generator, so a seed gives the same result on every platform.
// Owns what sampling options may be: callers above read these limits instead of repeating them.
#pragma once
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "engine/candidates.h"

namespace kimi {

// Both ends are allowed.
template <typename T>
struct Limits {
  T low, high;
};

struct SamplerLimits {
  static constexpr Limits<double> temperature{0, 100}, top_p{0, 1}, min_p{0, 1}, repeat_penalty{0.01, 10};
  static constexpr Limits<int64_t> top_k{0, int64_t{1} << 30}, repeat_last_n{0, int64_t{1} << 20};
};

// Unless given, every option leaves the distribution as the model has it.
struct SamplerOptions {
  uint64_t seed = 0;
  float temperature = 1.0f;     // 0: the most likely token
  int64_t top_k = 0;            // keep the k most likely; 0: all
  float top_p = 1.0f;           // keep the most likely that together reach p, one at least
  float min_p = 0.0f;           // keep those at least min_p times as likely as the best
  float repeat_penalty = 1.0f;  // logits of recent tokens: divided when positive, multiplied when negative
  int64_t repeat_last_n = 64;
};

class Sampler {
 public:
  // Throws Error(bad_request, "request.<option>").
  explicit Sampler(const SamplerOptions& options);
  // logits [vocab_size]. Order: repeat penalty, temperature, min-p, top-k, top-p. Ties go to the smaller id.
  // Logits that are NaN or infinite are never chosen.
  // Throws Error(bad_model_file, "model.not_finite") when no logit is finite.
  int32_t sample(std::span<const float> logits);
  void accept(int32_t token);

 private:
  double uniform();  // [0, 1)
  void score(std::span<const float> logits);
  SamplerOptions options_;
  uint64_t state_;
  std::deque<int32_t> recent_;
  std::vector<float> scores_;
  Candidates candidates_;
};

}  // namespace kimi
