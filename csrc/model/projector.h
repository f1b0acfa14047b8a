// The projector: features of neighbouring patches, merged -> embeddings for the decoder.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace kimi {

class Projector {
 public:
  Projector(const VisionConfig& config, const VisionWeights& weights, ComputeType compute_type)
      : config_(config), weights_(weights), compute_type_(compute_type) {}

  // features [grid_h * grid_w, hidden_size] -> out, on the host, [grid_h / merge * grid_w / merge, text_hidden_size].
  // Where products are bf16, what comes out are halves as floats, unless one is too large. adapter: whose side products are
  // added, or kNoAdapter.
  void run(Backend& backend, const float* features, int64_t grid_h, int64_t grid_w, int32_t adapter, float* out) const;

 private:
  const VisionConfig& config_;
  const VisionWeights& weights_;
  const ComputeType compute_type_;
};

}  // namespace kimi
