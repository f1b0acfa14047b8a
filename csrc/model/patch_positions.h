// Where the patches of a picture lie, as the tower takes it: embeddings and rotary angles of every place in a grid.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "model/config.h"
#include "model/weights.h"

namespace kimi {

// Of one size of pictures: computed on the host, kept by the backend.
class PatchPositions {
 public:
  PatchPositions(Backend& backend, const VisionConfig& config, const VisionWeights& weights, int64_t grid_h, int64_t grid_w);
  bool are_of(int64_t grid_h, int64_t grid_w) const { return grid_h_ == grid_h && grid_w_ == grid_w; }
  // The table of positions at the size of the grid, [n_patches, hidden_size].
  const float* embeddings() const { return embeddings_.floats(); }
  // [n_patches, head_dim / 2, 2] (cos, sin). Pairs alternate column and row; in the split order the first half of them turns with
  // the column and the second with the row.
  const float* cos_sin() const { return cos_sin_.floats(); }

 private:
  const int64_t grid_h_, grid_w_;
  Buffer embeddings_, cos_sin_;
};

}  // namespace kimi
