#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"

namespace kimi {
namespace {

constexpr float kNegligible = -27.6f;  // e^-27.6 = 1e-12

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

// The `count` most likely candidates, most likely first; ties go to the smaller id.
void Sampler::keep_top(size_t count) {
  const auto by_weight = [](const std::pair<float, int32_t>& a, const std::pair<float, int32_t>& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  count = std::min(count, candidates_.size());
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(), by_weight);
  candidates_.resize(count);
}

void Sampler::accept(int32_t token) {
  if (options_.repeat_last_n == 0) return;
  recent_.push_back(token);
  if (static_cast<int64_t>(recent_.size()) > options_.repeat_last_n) recent_.pop_front();
}

int32_t Sampler::sample(std::span<const float> logits) {
  scores_.assign(logits.begin(), logits.end());
  if (options_.repeat_penalty != 1.0f) {
    std::vector<int32_t> seen(recent_.begin(), recent_.end());
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (int32_t token : seen)
      if (token >= 0 && static_cast<size_t>(token) < scores_.size()) {
        float& score = scores_[static_cast<size_t>(token)];
        if (!std::isfinite(score)) continue;
        score = score > 0 ? score / options_.repeat_penalty : score * options_.repeat_penalty;
        score = std::clamp(score, std::numeric_limits<float>::lowest(), std::numeric_limits<float>::max());
      }
  }
  int64_t best = -1;
  for (size_t i = 0; i < scores_.size(); ++i)
    if (std::isfinite(scores_[i]) && (best < 0 || scores_[i] > scores_[static_cast<size_t>(best)]))
      best = static_cast<int64_t>(i);
  KIMI_CHECK(best >= 0, ErrorKind::bad_model_file, "model.not_finite",
             "the model produced no finite number for any token: its file is damaged, download it again");
  if (options_.temperature == 0.0f || options_.top_k == 1) return static_cast<int32_t>(best);

  // Candidates no further from the best than float probabilities can show.
  const float top = scores_[static_cast<size_t>(best)], inverse = 1.0f / options_.temperature;
  const float floor = std::max(kNegligible, options_.min_p > 0 ? std::log(options_.min_p) : kNegligible);
  candidates_.clear();
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (!std::isfinite(scores_[i])) continue;
    // The best itself without the product: 1 / temperature may be infinite, and 0 * infinity is no number.
    const float exponent = scores_[i] == top ? 0.0f : (scores_[i] - top) * inverse;
    if (exponent >= floor) candidates_.emplace_back(std::exp(exponent), static_cast<int32_t>(i));
  }
  if (options_.top_k > 0) keep_top(static_cast<size_t>(options_.top_k));
  double total = 0;
  for (const auto& candidate : candidates_) total += candidate.first;
  if (options_.top_p < 1.0f) {
    // The smallest set of the most likely that reaches p; sets of growing size are sorted until one does.
    const std::vector<std::pair<float, int32_t>> all = candidates_;
    double kept = 0;
    for (size_t size = 64;; size *= 8) {
      candidates_ = all;
      keep_top(size);
      kept = 0;
      size_t count = 0;
      while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total)) kept += candidates_[count++].first;
      if (kept >= options_.top_p * total || size >= all.size()) {
        candidates_.resize(count);
        break;
      }
    }
    total = kept;
  }
  double target = uniform() * total;
  for (const auto& candidate : candidates_) {
    target -= candidate.first;
    if (target < 0) return candidate.second;
  }
  return candidates_.back().second;
}

}  // namespace kimi
