// Shows inputs of products to an observer, which reads floats of the host.
#include <numeric>

#include "backend/cuda/cuda_backend.h"

namespace kimi::cuda {

// Matrix by matrix: what of x meets it.
void CudaBackend::show(const Matrix& w, const Rows& x, const Placement& placement) {
  const RowMap& map = placement.map;
  std::vector<float> floats(static_cast<size_t>((x.n - 1) * x.stride + x.k));
  device_.download(floats.data(), x.x, floats.size() * sizeof(float));
  std::vector<int32_t> x_rows;
  if (map.x_rows) {
    x_rows.resize(static_cast<size_t>(map.n));
    device_.download(x_rows.data(), map.x_rows, x_rows.size() * sizeof(int32_t));
  }
  std::vector<Tile> tiles(static_cast<size_t>(map.tiles ? placement.n_tiles : w.count));
  if (map.tiles) {
    device_.download(tiles.data(), map.tiles, tiles.size() * sizeof(Tile));
  } else {
    for (size_t i = 0; i < tiles.size(); ++i) tiles[i] = {static_cast<int>(i), 0, map.n};
  }
  for (const Tile& tile : tiles) {
    if (tile.count == 0) continue;
    Matrix one = w.at(tile.matrix);
    if (const auto origin = origins_.find(one.data); origin != origins_.end()) one.data = origin->second;
    std::vector<int32_t> rows;
    for (int place = tile.first; place < tile.first + tile.count; ++place)
      rows.push_back(map.x_rows ? x_rows[static_cast<size_t>(place)] : place * map.x_step + tile.matrix * map.x_matrix);
    observer_->see({&one, floats.data(), tile.count, x.stride, rows.data()}, 0, one.cols);
  }
}

}  // namespace kimi::cuda
