// Side products: what adapters add beside a matrix, row by row in float. A row's bits follow from the row and its adapter alone.
#include <algorithm>

#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {

// Those of n rows of x, one after the other, to which an adapter adds something.
void CpuBackend::add_side_rows(const Matrix& w, const float* x, int64_t n, const int32_t* adapters, float* out,
                               int64_t out_stride, std::vector<SideRow>* rows) const {
  if (!adapters || !w.sides) return;
  for (int64_t i = 0; i < n; ++i)
    if (const LowRank* side = w.side(adapters[i])) rows->push_back({side, x + i * w.cols, out + i * out_stride});
}

void CpuBackend::take_inner(std::vector<SideRow>* rows) {
  int64_t n_inner = 0;
  for (const SideRow& row : *rows) n_inner += row.side ? row.side->rank : 0;
  side_inner_.resize(static_cast<size_t>(n_inner));
  float* inner = side_inner_.data();
  for (SideRow& row : *rows) {
    row.inner = inner;
    inner += row.side ? row.side->rank : 0;
  }
  if (n_inner == 0) return;
  for_rows(static_cast<int64_t>(rows->size()), n_inner / static_cast<int64_t>(rows->size()) * rows->front().side->cols,
           [&](int64_t i) {
             const SideRow& row = (*rows)[static_cast<size_t>(i)];
             const LowRank& side = *row.side;
             kernels_.gemv_float[static_cast<int>(quant::Type::F32)](side.a, side.cols * int64_t{sizeof(float)}, side.rank, row.x,
                                                                     side.cols, side.cols, 1, row.inner, side.rank);
           });
}

// out [n_cols] += columns [col0, col0 + n_cols) of what is added.
void CpuBackend::add_outer(const SideRow& row, int64_t col0, int64_t n_cols, float* out) const {
  const LowRank& side = *row.side;
  for (int64_t k = 0; k < side.rank; ++k)
    kernels_.add_scaled(side.b + k * side.rows + col0, row.weight * row.inner[k], n_cols, out);
}

void CpuBackend::add_sides(std::vector<SideRow> rows) {
  if (rows.empty()) return;
  take_inner(&rows);
  std::stable_sort(rows.begin(), rows.end(), [](const SideRow& a, const SideRow& b) { return a.out < b.out; });
  std::vector<size_t> firsts;  // of the rows that add to the same out
  for (size_t i = 0; i < rows.size(); ++i)
    if (i == 0 || rows[i].out != rows[i - 1].out) firsts.push_back(i);
  const auto n = static_cast<int64_t>(firsts.size());
  for_rows(n, rows.front().side->rank * rows.front().side->rows, [&](int64_t i) {
    const size_t end = i + 1 < n ? firsts[static_cast<size_t>(i + 1)] : rows.size();
    for (size_t r = firsts[static_cast<size_t>(i)]; r < end; ++r) add_outer(rows[r], 0, rows[r].side->rows, rows[r].out);
  });
}

}  // namespace kimi::cpu
