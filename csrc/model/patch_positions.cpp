#include "model/patch_positions.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/aligned_buffer.h"

namespace kimi {
namespace {

struct Taps {
  int64_t index[4];
  float weight[4];
};

Taps cubic_taps(int64_t i, int64_t in, int64_t out) {
  constexpr double a = -0.75;
  const double source = (static_cast<double>(i) + 0.5) * static_cast<double>(in) / static_cast<double>(out) - 0.5;
  const double floor = std::floor(source), t = source - floor;
  const auto inner = [](double x) { return ((a + 2) * x - (a + 3)) * x * x + 1; };
  const auto outer = [](double x) { return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a; };
  Taps taps;
  const double weights[4] = {outer(t + 1), inner(t), inner(1 - t), outer(2 - t)};
  for (int k = 0; k < 4; ++k) {
    taps.index[k] = std::clamp<int64_t>(static_cast<int64_t>(floor) - 1 + k, 0, in - 1);
    taps.weight[k] = static_cast<float>(weights[k]);
  }
  return taps;
}

// side x side -> height x width: cubic convolution with a = -0.75, clamped borders, no antialiasing (torch's bicubic).
void resample_position_table(const float* table, int64_t side, int64_t channels, int64_t height, int64_t width, float* out) {
  // Columns first, [side, width, channels], then rows.
  std::vector<float> wide(static_cast<size_t>(side * width * channels));
  for (int64_t x = 0; x < width; ++x) {
    const Taps taps = cubic_taps(x, side, width);
    for (int64_t y = 0; y < side; ++y) {
      float* to = wide.data() + (y * width + x) * channels;
      const float* row = table + y * side * channels;
      for (int64_t c = 0; c < channels; ++c)
        to[c] = taps.weight[0] * row[taps.index[0] * channels + c] + taps.weight[1] * row[taps.index[1] * channels + c] +
                taps.weight[2] * row[taps.index[2] * channels + c] + taps.weight[3] * row[taps.index[3] * channels + c];
    }
  }
  const int64_t row_floats = width * channels;
  for (int64_t y = 0; y < height; ++y) {
    const Taps taps = cubic_taps(y, side, height);
    const float *r0 = wide.data() + taps.index[0] * row_floats, *r1 = wide.data() + taps.index[1] * row_floats,
                *r2 = wide.data() + taps.index[2] * row_floats, *r3 = wide.data() + taps.index[3] * row_floats;
    float* to = out + y * row_floats;
    for (int64_t i = 0; i < row_floats; ++i)
      to[i] = taps.weight[0] * r0[i] + taps.weight[1] * r1[i] + taps.weight[2] * r2[i] + taps.weight[3] * r3[i];
  }
}

std::vector<float> rope_2d_cos_sin(int64_t height, int64_t width, int64_t head_dim, bool split) {
  const int64_t pairs = head_dim / 2, freqs = head_dim / 4;
  std::vector<float> out(static_cast<size_t>(height * width * pairs * 2));
  for (int64_t j = 0; j < pairs; ++j) {
    const int64_t i = split ? j % freqs : j / 2;
    const bool by_column = split ? j < freqs : j % 2 == 0;
    const double freq = std::pow(10000.0, -4.0 * static_cast<double>(i) / static_cast<double>(head_dim));
    const int64_t n = by_column ? width : height;
    for (int64_t position = 0; position < n; ++position) {
      const float c = static_cast<float>(std::cos(static_cast<double>(position) * freq)),
                  s = static_cast<float>(std::sin(static_cast<double>(position) * freq));
      for (int64_t other = 0; other < (by_column ? height : width); ++other) {
        const int64_t patch = by_column ? other * width + position : position * width + other;
        out[static_cast<size_t>((patch * pairs + j) * 2)] = c;
        out[static_cast<size_t>((patch * pairs + j) * 2 + 1)] = s;
      }
    }
  }
  return out;
}

Buffer uploaded(Backend& backend, const float* values, size_t n) {
  Buffer buffer = backend.allocate(n * sizeof(float));
  backend.upload(buffer.data(), values, static_cast<int64_t>(n * sizeof(float)));
  return buffer;
}

}  // namespace

PatchPositions::PatchPositions(Backend& backend, const VisionConfig& config, const VisionWeights& weights, int64_t grid_h,
                               int64_t grid_w)
    : grid_h_(grid_h), grid_w_(grid_w) {
  const AlignedBuffer<float>& table = weights.position_embd.host();
  const int64_t side = config.position_side, hidden = config.hidden_size;
  if (grid_h == side && grid_w == side) {
    embeddings_ = uploaded(backend, table.data(), table.size());
  } else {
    AlignedBuffer<float> resampled(static_cast<size_t>(grid_h * grid_w * hidden));
    resample_position_table(table.data(), side, hidden, grid_h, grid_w, resampled.data());
    embeddings_ = uploaded(backend, resampled.data(), resampled.size());
  }
  const std::vector<float> angles = rope_2d_cos_sin(grid_h, grid_w, hidden / config.num_attention_heads, config.split_rope);
  cos_sin_ = uploaded(backend, angles.data(), angles.size());
}

}  // namespace kimi
