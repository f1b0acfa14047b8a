// MoonViT: pixels of one picture -> features of its patches.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/patch_positions.h"
#include "model/picture.h"
#include "model/weights.h"

namespace kimi {

// A picture on its way through the tower. Owns what is handed from block to block.
class TowerPass {
 public:
  int64_t grid_h() const { return grid_h_; }
  int64_t grid_w() const { return grid_w_; }
  int64_t n_patches() const { return grid_h_ * grid_w_; }

 private:
  friend class MoonVit;
  int64_t grid_h_ = 0, grid_w_ = 0;
  int64_t block_ = 0;              // the next
  std::vector<int32_t> adapters_;  // [n_patches]; empty: none
  Buffer x_;                       // [n_patches, hidden_size]
  std::shared_ptr<const PatchPositions> positions_;
};

class MoonVit {
 public:
  // compute_type: f32, or bf16 for products and attention; norms, softmax and what is handed from layer to layer stay float
  MoonVit(const VisionConfig& config, const VisionWeights& weights, ComputeType compute_type)
      : config_(config), weights_(weights), compute_type_(compute_type) {}

  // The patches. adapter: whose side products are added, or kNoAdapter.
  void begin(Backend& backend, const Picture& picture, int32_t adapter, TowerPass* pass);
  // The next of config.num_hidden_layers blocks.
  void advance(Backend& backend, TowerPass* pass);
  // After the last block: the final norm. -> features [n_patches, hidden_size], of the pass
  const float* finish(Backend& backend, TowerPass* pass);

 private:
  void embed_patches(Backend& backend, const Picture& picture, TowerPass* pass);
  void block(Backend& backend, const VitBlockWeights& w, const TowerPass& pass);

  const VisionConfig& config_;
  const VisionWeights& weights_;
  const ComputeType compute_type_;
  std::shared_ptr<const PatchPositions> positions_;  // of the last picture's size: pictures often come in one size
  Buffer normed_, inner_;
};

}  // namespace kimi
