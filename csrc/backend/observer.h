// Sees what weights are multiplied with: for measurements over a run. Without one, an operation costs one pointer test.
#pragma once
#include <cstdint>

namespace kimi {

struct Matrix;

// What one matrix is about to be multiplied with.
struct ProductInput {
  const Matrix* w;      // one matrix, not a stack
  const float* x;       // on the host, [n, w->cols] before any rounding
  int64_t n, stride;    // stride: from row to row, in elements
  const int32_t* rows;  // which rows of x; nullptr: the first n
};

class InputObserver {
 public:
  virtual ~InputObserver() = default;
  // Columns [first, first + n_cols) of an input. Several threads call at once, never two of them for the same columns of one
  // matrix.
  virtual void see(const ProductInput& input, int64_t first, int64_t n_cols) noexcept = 0;
};

}  // namespace kimi
