#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace kimi {
namespace {

constexpr float kNegligible = -27.6f;  // e^-27.6 = 1e-12: no further from the best than float probabilities can show

void check_real(const char* name, float value, const Limits<double>& limits) {
  if (!(value >= static_cast<float>(limits.low) && value <= static_cast<float>(limits.high)))
    fail(ErrorKind::bad_request, (std::string("request.") + name).c_str(), "%s is %g, expected %g to %g", name,
         static_cast<double>(value), limits.low, limits.high);
}

void check_count(const char* name, int64_t value, const Limits<int64_t>& limits) {
  if (value < limits.low || value > limits.high)
    fail(ErrorKind::bad_request, (std::string("request.") + name).c_str(), "%s is %lld, expected %lld to %lld", name,
         static_cast<long long>(value), static_cast<long long>(limits.low), static_cast<long long>(limits.high));
}

float largest(const std::vector<float>& scores) {
  constexpr size_t kLanes = 16;
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  size_t i = 0;
  for (; i + kLanes <= scores.size(); i += kLanes)
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = scores[i + lane] > lanes[lane] ? scores[i + lane] : lanes[lane];
  for (; i < scores.size(); ++i) lanes[0] = std::max(lanes[0], scores[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), state_(options.seed) {
  check_real("temperature", options.temperature, SamplerLimits::temperature);
  check_real("top_p", options.top_p, SamplerLimits::top_p);
  check_real("min_p", options.min_p, SamplerLimits::min_p);
  check_real("repeat_penalty", options.repeat_penalty, SamplerLimits::repeat_penalty);
  check_count("top_k", options.top_k, SamplerLimits::top_k);
  check_count("repeat_last_n", options.repeat_last_n, SamplerLimits::repeat_last_n);
}

// SplitMix64 (Steele, Lea and Flood 2014): one addition and a finaliser.
double Sampler::uniform() {
  uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return static_cast<double>(z >> 11) * 0x1p-53;
}

void Sampler::accept(int32_t token) {
  if (options_.repeat_last_n == 0) return;
  recent_.push_back(token);
  if (static_cast<int64_t>(recent_.size()) > options_.repeat_last_n) recent_.pop_front();
}

// The logits with the repeat penalty, -inf for those that are not finite.
void Sampler::score(std::span<const float> logits) {
  constexpr float kLargest = std::numeric_limits<float>::max(), kNever = -std::numeric_limits<float>::infinity();
  scores_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    const float logit = logits[i];
    scores_[i] = (logit >= -kLargest) & (logit <= kLargest) ? logit : kNever;
  }
  if (options_.repeat_penalty == 1.0f) return;
  std::vector<int32_t> seen(recent_.begin(), recent_.end());
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  for (const int32_t token : seen) {
    if (token < 0 || static_cast<size_t>(token) >= scores_.size()) continue;
    float& score = scores_[static_cast<size_t>(token)];
    if (score == kNever) continue;
    score = score > 0 ? score / options_.repeat_penalty : score * options_.repeat_penalty;
    score = std::clamp(score, -kLargest, kLargest);
  }
}

int32_t Sampler::sample(std::span<const float> logits) {
  score(logits);
  const float top = largest(scores_);
  KIMI_CHECK(std::isfinite(top), ErrorKind::bad_model_file, "model.not_finite",
             "the model produced no finite number for any token: its file is damaged, download it again");
  if (options_.temperature == 0.0f || options_.top_k == 1)
    return static_cast<int32_t>(std::find(scores_.begin(), scores_.end(), top) - scores_.begin());
  const float floor = std::max(kNegligible, options_.min_p > 0 ? std::log(options_.min_p) : kNegligible);
  candidates_.weigh(scores_, top, 1.0f / options_.temperature, floor);
  if (options_.top_k == 0 && options_.top_p >= 1.0f) return candidates_.draw(uniform());
  const int64_t count = options_.top_k > 0 ? options_.top_k : std::numeric_limits<int64_t>::max();
  return candidates_.draw_heaviest(uniform(), count, options_.top_p);
}

}  // namespace kimi
