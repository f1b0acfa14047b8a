// The choice of the next token. Own random numbers, so that a seed means the same everywhere.
#pragma once
#include <cstdint>
#include <deque>
#include <span>
#include <vector>

namespace kimi {

struct SamplerOptions {
  uint64_t seed = 0;
  float temperature = 0.8f;    // 0: the most likely token
  int64_t top_k = 0;           // keep the k most likely; 0: all
  float top_p = 1.0f;          // keep the most likely that together reach p
  float min_p = 0.0f;          // keep those at least min_p times as likely as the best
  float repeat_penalty = 1.0f; // logits of recent tokens: divided when positive, multiplied when negative
  int64_t repeat_last_n = 64;
};

class Sampler {
 public:
  // Throws Error(bad_request, "request.<option>").
  explicit Sampler(const SamplerOptions& options);
  // logits [vocab_size]. Order: repeat penalty, temperature, min-p, top-k, top-p. Ties go to the smaller id.
  // Throws Error(bad_model_file, "model.not_finite") when no logit is a number.
  int32_t sample(std::span<const float> logits);
  void accept(int32_t token);

 private:
  double uniform();  // [0, 1)
  void keep_top(size_t count);
  SamplerOptions options_;
  uint64_t state_;
  std::deque<int32_t> recent_;
  std::vector<float> scores_;
  std::vector<std::pair<float, int32_t>> candidates_;
};

}  // namespace kimi
