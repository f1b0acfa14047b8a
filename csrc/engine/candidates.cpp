#include "engine/candidates.h"

#include <algorithm>
#include <bit>
#include <limits>

namespace kimi {
namespace {

// e^x for -28 <= x <= 0 to a unit in the last place: 2^n times the series of the rest. Without branches, so that compilers take
// several at once.
inline float exp_of(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const float shifted = x * 1.44269504088896341f + kMagic, n = shifted - kMagic;
  const float r = (x - n * 0.693145751953125f) - n * 1.42860682030941723e-6f;  // x - n log(2)
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * std::bit_cast<float>((std::bit_cast<int32_t>(shifted) - 0x4b400000 + 127) << 23);
}

}  // namespace

void Candidates::weigh(std::span<const float> scores, float top, float inverse, float floor) {
  const size_t n = scores.size();
  weights_.resize(n);
  const float* x = scores.data();
  float* out = weights_.data();
  for (size_t i = 0; i < n; i += kBlock) {
    const size_t end = std::min(n, i + kBlock);
    for (size_t j = i; j < end; ++j) {
      const float scaled = (x[j] - top) * inverse;
      // The best itself without the product: 1 / temperature may be infinite, and 0 * infinity is not a number.
      const float exponent = x[j] == top ? 0.0f : scaled;
      const float weight = exp_of(exponent < -28.0f ? -28.0f : exponent);
      out[j] = exponent < floor ? 0.0f : weight;
    }
  }
  block_sums_.assign((n + kBlock - 1) / kBlock, 0.0);
  for (size_t i = 0; i < n; i += kBlock) {
    double lanes[4] = {};  // a chain of additions each
    const size_t end = std::min(n, i + kBlock);
    size_t j = i;
    for (; j + 4 <= end; j += 4)
      for (size_t lane = 0; lane < 4; ++lane) lanes[lane] += out[j + lane];
    for (; j < end; ++j) lanes[0] += out[j];
    block_sums_[i / kBlock] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
  }
}

// The token of a block that `target` falls upon; rounding may lead past the last one.
int32_t Candidates::walk(size_t block, double target) const {
  int32_t token = -1;
  for (size_t i = block * kBlock; i < std::min(weights_.size(), (block + 1) * kBlock); ++i) {
    if (weights_[i] <= 0) continue;
    token = static_cast<int32_t>(i);
    target -= weights_[i];
    if (target < 0) break;
  }
  return token;
}

int32_t Candidates::draw(double uniform) const {
  double total = 0;
  for (const double sum : block_sums_) total += sum;
  double target = uniform * total;
  size_t last = 0;
  for (size_t block = 0; block < block_sums_.size(); ++block) {
    if (block_sums_[block] <= 0) continue;
    if (target < block_sums_[block]) return walk(block, target);
    target -= block_sums_[block];
    last = block;
  }
  return walk(last, std::numeric_limits<double>::infinity());
}

size_t Candidates::bin_of(float weight) { return (kOne - std::bit_cast<uint32_t>(weight)) >> kBinShift; }

void Candidates::fill_bins() {
  bins_.assign(kBins, {});
  for (const float weight : weights_) {
    if (weight <= 0) continue;
    Bin& bin = bins_[bin_of(weight)];
    bin.sum += weight;
    ++bin.count;
  }
  sorted_bin_ = kBins;
}

const std::vector<Candidates::Entry>& Candidates::sorted(size_t bin) {
  if (sorted_bin_ == bin) return sorted_;
  sorted_bin_ = bin;
  sorted_.clear();
  for (size_t i = 0; i < weights_.size(); ++i)
    if (weights_[i] > 0 && bin_of(weights_[i]) == bin) sorted_.push_back({weights_[i], static_cast<int32_t>(i)});
  std::sort(sorted_.begin(), sorted_.end(),
            [](const Entry& a, const Entry& b) { return a.weight != b.weight ? a.weight > b.weight : a.token < b.token; });
  return sorted_;
}

// The heaviest `count`, of which only those count that lie before the share is reached.
Candidates::Heaviest Candidates::heaviest(int64_t count, double share) {
  Heaviest kept;
  for (size_t bin = 0; bin < kBins && count > 0; ++bin) {
    if (bins_[bin].count == 0) continue;
    const int64_t n = std::min(bins_[bin].count, count);
    double sum = bins_[bin].sum;
    kept.before += kept.sum;
    kept.bin = bin;
    kept.n = n;
    if (n < bins_[bin].count || kept.before + sum >= share) {
      const std::vector<Entry>& entries = sorted(bin);
      sum = 0;
      for (kept.n = 0; kept.n < n && (kept.n == 0 || kept.before + sum < share); ++kept.n)
        sum += entries[static_cast<size_t>(kept.n)].weight;
    }
    kept.sum = sum;
    if (kept.before + sum >= share) break;
    count -= n;
  }
  return kept;
}

int32_t Candidates::draw_heaviest(double uniform, int64_t count, double top_p) {
  constexpr double kAll = std::numeric_limits<double>::infinity();
  fill_bins();
  Heaviest kept = heaviest(count, kAll);
  if (top_p < 1) kept = heaviest(count, top_p * (kept.before + kept.sum));
  double target = uniform * (kept.before + kept.sum);
  size_t bin = 0;
  for (; bin < kept.bin && target >= bins_[bin].sum; ++bin) target -= bins_[bin].sum;
  const std::vector<Entry>& entries = sorted(bin);
  const size_t n = bin == kept.bin ? static_cast<size_t>(kept.n) : entries.size();
  for (size_t i = 0; i + 1 < n; ++i) {
    target -= entries[i].weight;
    if (target < 0) return entries[i].token;
  }
  return entries[n - 1].token;
}

}  // namespace kimi
