// MoonViT and the projector: pixels of one picture -> features of its patches -> embeddings for the decoder.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace kimi {

using LayerProgress = std::function<void(int64_t done, int64_t total)>;

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

class MoonVit {
 public:
  // numbers: floats, or bf16 for products and attention; norms, softmax and what is handed from layer to layer stay float
  MoonVit(const VisionConfig& config, const VisionWeights& weights, Numbers numbers)
      : config_(config), weights_(weights), numbers_(numbers) {}

  // out [n_patches, hidden_size], after the final norm
  void tower(Backend& backend, const Pixels& pixels, const LayerProgress& progress, float* out);
  // features [grid_h * grid_w, hidden_size] -> out [grid_h / 2 * grid_w / 2, text_hidden_size]
  void project(Backend& backend, const float* features, int64_t grid_h, int64_t grid_w, float* out);

 private:
  void embed_patches(Backend& backend, const Pixels& pixels, float* out);
  void block(Backend& backend, const VitBlockWeights& w, const float* cos_sin, int64_t n, float* x);

  const VisionConfig& config_;
  const VisionWeights& weights_;
  const Numbers numbers_;
  AlignedBuffer<float> normed_, inner_;
};

}  // namespace kimi
