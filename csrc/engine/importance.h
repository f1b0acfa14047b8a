// Sums of squares of what each column of every weight matrix is multiplied with, over a run: how much a column matters.
// Owns the sums; refuses to know what they are used for.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace kimi {

// Of one tensor: a matrix, or a stack of n_matrices (experts, heads).
struct InputSums {
  std::string name;  // of the tensor, as in GGUF
  int64_t n_matrices = 1;
  int64_t n_cols = 0;
  std::vector<double> sums;     // [n_matrices, n_cols]
  std::vector<int64_t> counts;  // [n_matrices] rows that were multiplied
};

class Importance final : public InputObserver {
 public:
  // Watches the engine's calls from now on. Throws Error(bad_request, "importance.busy") when another one does.
  explicit Importance(std::shared_ptr<Engine> engine);
  ~Importance() override;
  Importance(const Importance&) = delete;
  Importance& operator=(const Importance&) = delete;

  // What was seen so far; waits for a running call. Tensors of which nothing was seen are left out. Without `with_sums`
  // the sums are empty.
  std::vector<InputSums> totals(bool with_sums) const;

  void see(const ProductInput& input, int64_t first, int64_t n_cols) noexcept override;

 private:
  const std::shared_ptr<Engine> engine_;
  std::vector<InputSums> seen_;  // of the engine's weights, in their order
};

}  // namespace kimi
