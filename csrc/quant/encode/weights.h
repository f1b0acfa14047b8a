// What an element's error weighs: its column's importance, if known, and larger elements somewhat more, since a product of
// large factors is what reaches a layer's output. Also brings a superblock to unit scale (see unit_scale).
#pragma once
#include "quant/encode/lanes.h"

namespace kimi::quant {
namespace {

// No block with an f16 scale can hold a smaller magnitude than half the least f16, other than as zero.
constexpr float kLeastMagnitude = 0x1p-25f;
// Keeps columns that were never seen from being free: they count this much beside an average column.
constexpr float kLeastImportance = 1e-5f;
// With importance, large elements count a little more all the same: a tenth costs about 1 % of the error by importance alone,
// and takes several times as much off the error of outliers.
constexpr float kLargeOfImportance = 0.1f;

// 1 / mean of the row's importance, or 0 where there is none to speak of.
KIMI_INLINE float unit_of_importance(const float* importance, int64_t n) {
  if (!importance) return 0;
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(importance[i]);
  const double mean = sum / static_cast<double>(n);
  return mean > 1e-36 ? static_cast<float>(1.0 / (mean < 1e36 ? mean : 1e36)) : 0.0f;
}

// n elements and their weights, x in the block's unit. large: how much more an element of the root mean square weighs than
// zero does. False: the block has no magnitude above `least` and is zero.
KIMI_INLINE bool load_block(const float* row, const float* importance, float importance_unit, float large, float least, int n,
                            float* x, float* w, PowerOfTwo* unit) {
  const float largest = largest_magnitude(row, n);
  if (!(largest > least)) return false;
  *unit = unit_scale(largest);
  for (int i = 0; i < n; ++i) x[i] = row[i] * unit->down;
  float partial[16] = {};
  for (int i = 0; i < n; i += 16)
    for (int lane = 0; lane < 16; ++lane) partial[lane] += x[i + lane] * x[i + lane];
  float sum = 0;
  for (int lane = 0; lane < 16; ++lane) sum += partial[lane];
  const bool known = importance && importance_unit > 0;
  const float per_square = (known ? kLargeOfImportance : large) * static_cast<float>(n) / sum;
  for (int i = 0; i < n; ++i) w[i] = 1.0f + x[i] * x[i] * per_square;
  if (known) {
    for (int i = 0; i < n; ++i) w[i] *= importance[i] * importance_unit + kLeastImportance;
  }
  return true;
}

}  // namespace
}  // namespace kimi::quant
