// MoonViT: pixels of one picture -> features of its patches.
#pragma once
#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace kimi {

// [H, W, 3] uint8, H and W multiples of merge * patch_size
struct Pixels {
  const uint8_t* data;
  int64_t height, width;
};

// Throws Error(bad_image, "image.*") for sizes that the tower does not take.
void check_pixels(const VisionConfig& config, const Pixels& pixels);
inline int64_t count_patches(const VisionConfig& config, const Pixels& pixels) {
  return pixels.height / config.patch_size * (pixels.width / config.patch_size);
}

// side x side -> height x width: cubic convolution with a = -0.75, clamped borders, no antialiasing (torch's bicubic).
void resample_position_table(const float* table, int64_t side, int64_t channels, int64_t height, int64_t width, float* out);
// Rotary angles of every patch: [height * width, head_dim / 2, 2] (cos, sin). Pairs alternate column and row; in the split
// order the first half of them turns with the column and the second with the row.
std::vector<float> rope_2d_cos_sin(int64_t height, int64_t width, int64_t head_dim, bool split);

// A picture on its way through the tower. Owns what is handed from block to block.
class TowerPass {
 public:
  int64_t grid_h() const { return grid_h_; }
  int64_t grid_w() const { return grid_w_; }
  int64_t n_patches() const { return grid_h_ * grid_w_; }

 private:
  friend class MoonVit;
  int64_t grid_h_ = 0, grid_w_ = 0;
  int64_t block_ = 0;          // the next
  Buffer x_;                   // [n_patches, hidden_size]
  std::vector<float> angles_;  // [n_patches, head_dim / 2, 2] on the host
  Buffer cos_sin_;             // the same
};

class MoonVit {
 public:
  // numbers: floats, or bf16 for products and attention; norms, softmax and what is handed from layer to layer stay float
  MoonVit(const VisionConfig& config, const VisionWeights& weights, Numbers numbers)
      : config_(config), weights_(weights), numbers_(numbers) {}

  // The patches of a picture that check_pixels has passed.
  void begin(Backend& backend, const Pixels& pixels, TowerPass* pass);
  // The next of config.num_hidden_layers blocks.
  void advance(Backend& backend, TowerPass* pass);
  // After the last block: the final norm. -> features [n_patches, hidden_size], of the pass
  const float* finish(Backend& backend, TowerPass* pass);

 private:
  void embed_patches(Backend& backend, const Pixels& pixels, TowerPass* pass);
  void block(Backend& backend, const VitBlockWeights& w, const float* cos_sin, int64_t n, float* x);

  const VisionConfig& config_;
  const VisionWeights& weights_;
  const Numbers numbers_;
  Buffer normed_, inner_;
};

}  // namespace kimi
