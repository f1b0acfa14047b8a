// Sums of squares of what each column of every weight matrix is multiplied with, over a run: how much a column matters.
// Owns the sums and which bytes of the files belong to which matrix; refuses to know what they are used for.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace kimi {

// Of one tensor: a matrix, or a stack of n_matrices (experts, heads).
struct InputSums {
  std::string name;  // of the tensor, as GGUF spells it
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
  struct Entry {
    InputSums seen;
    const uint8_t* begin;
    const uint8_t* end;
    int64_t stack_bytes;  // from one matrix to the next
    bool heads_of_kv_b;   // a legacy attn_kv_b: rows of all heads over the same columns; only its values are multiplied
  };
  void add(const gguf::File& file);
  Entry* find(const uint8_t* data, int64_t* matrix) noexcept;

  std::shared_ptr<Engine> engine_;
  std::vector<Entry> entries_;  // by address
};

}  // namespace kimi
