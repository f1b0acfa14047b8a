// Picture: pixels of a size that the tower takes. Whoever holds one need not check it again.
#pragma once
#include <cstdint>

#include "model/config.h"

namespace kimi {

class Picture {
 public:
  // pixels: [height, width, 3] of colours, which must outlive it. Throws Error(bad_image, "image.*") for other sizes than
  // positive multiples of merge * patch_size, with fewer than max_grid_side patches a side.
  Picture(const VisionConfig& config, const uint8_t* pixels, int64_t height, int64_t width);
  const uint8_t* pixels() const { return pixels_; }
  int64_t height() const { return height_; }
  int64_t width() const { return width_; }
  int64_t grid_h() const { return grid_h_; }  // patches down and across
  int64_t grid_w() const { return grid_w_; }
  int64_t n_patches() const { return grid_h_ * grid_w_; }

 private:
  const uint8_t* pixels_;
  int64_t height_, width_, grid_h_, grid_w_;
};

}  // namespace kimi
