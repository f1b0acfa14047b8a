#include "model/projector.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/f16.h"

namespace kimi {

namespace {

constexpr float kLargestHalf = 65504;

// To the nearest half each, unless one is too large for a half. Products of bf16 are a hundred times as coarse, and what is kept
// of a picture takes half the memory.
void round_to_halves(float* values, int64_t n) {
  bool fit = true;
  for (int64_t i = 0; i < n; ++i) fit &= std::fabs(values[i]) <= kLargestHalf;
  if (!fit) return;
  for (int64_t i = 0; i < n; ++i) values[i] = f32_from_f16(f16_from_f32(values[i]));
}

}  // namespace

void Projector::run(Backend& backend, const float* features, int64_t grid_h, int64_t grid_w, int32_t adapter, float* out) const {
  const int64_t hidden = config_.hidden_size, merge = config_.merge, n = grid_h * grid_w, blocks = n / (merge * merge),
                merged = merge * merge * hidden;
  Buffer gathered, inner;
  const std::vector<int32_t> adapters(adapter == kNoAdapter ? 0 : static_cast<size_t>(blocks), adapter);
  float* x = backend.room(&gathered, n * hidden);
  backend.merge_rows({features, grid_h, grid_w, merge, hidden, x});
  backend.layer_norm(x, weights_.mm_input_norm_weight.floats(), weights_.mm_input_norm_bias.floats(), config_.projector_norm_eps,
                     n, hidden, x);
  LinearArgs first{};
  first.x = x;
  first.n = blocks;
  first.w = weights_.mm_1;
  first.bias = weights_.mm_1_bias.floats();
  first.activation = Activation::gelu_erf;
  first.compute_type = compute_type_;
  first.adapters = adapters.empty() ? nullptr : adapters.data();
  first.out = backend.room(&inner, blocks * merged);
  backend.linear(first);
  LinearArgs second{};
  second.x = first.out;
  second.n = blocks;
  second.w = weights_.mm_2;
  second.bias = weights_.mm_2_bias.floats();
  second.compute_type = compute_type_;
  second.adapters = first.adapters;
  second.out = out;
  backend.linear_to_host(second);
  if (compute_type_ == ComputeType::bf16) round_to_halves(out, blocks * config_.text_hidden_size);
}

}  // namespace kimi
