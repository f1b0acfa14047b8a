// The two forms in which an operation may multiply numbers that are floats outside: as floats, or as bf16 with sums in float.
// An operation that knows both is a template over one of these.
#pragma once
#include <cstring>

#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu {

struct InFloat {
  using Number = float;
  using Block = AttentionBlock;
  // Column stride of an operand laid out across the lanes, in elements.
  static constexpr int64_t kAcross = 1;
  const KernelTable& kernels;

  // Numbers that are summed over lie side by side.
  void row(const float* x, int64_t n, float* out) const { std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float)); }
  // Numbers that are summed over lie below each other, [n_rows, n_cols].
  void across(const float* x, int64_t n_rows, int64_t n_cols, float scale, float* out) const {
    for (int64_t i = 0; i < n_rows * n_cols; ++i) out[i] = x[i] * scale;
  }
  // Products of rows [m, lda] and k numbers across tile_lanes columns: as rows, as values that lie across, as floats. Here all
  // the same.
  void keys(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k, int64_t m, float* out, int64_t ldo) const {
    floats(a, lda, b, ldb, k, m, out, ldo);
  }
  void values(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k, int64_t m, float* out, int64_t ldo) const {
    floats(a, lda, b, ldb, k, m, out, ldo);
  }
  void floats(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t k, int64_t m, float* out, int64_t ldo) const {
    kernels.gemm_f32(a, lda, 1, b, ldb, k, m, out, ldo, false);
  }
  void attend(const Block& block) const { kernels.attention_block(block); }
};

struct InBf16 {
  using Number = uint16_t;
  using Block = AttentionBlockBf16;
  static constexpr int64_t kAcross = 2;
  const KernelTable& kernels;

  // Whether the instruction set has it and sums of n_summed products come in pairs.
  static bool takes(const KernelTable& kernels, int64_t n_summed) { return kernels.attention_block_bf16 && n_summed % 2 == 0; }
  void row(const float* x, int64_t n, uint16_t* out) const { kernels.bf16_from_f32_row(x, n, out); }
  void across(const float* x, int64_t n_rows, int64_t n_cols, float scale, uint16_t* out) const {
    kernels.bf16_pairs_from_f32(x, n_cols, n_rows, n_cols, scale, out, n_cols);
  }
  void keys(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
            int64_t ldo) const {
    kernels.gemm_bf16_rows(a, lda, b, ldb, k, m, out, ldo);
  }
  void values(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
              int64_t ldo) const {
    kernels.gemm_bf16_pairs(a, lda, b, ldb, k, m, out, ldo);
  }
  void floats(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, float* out,
              int64_t ldo) const {
    kernels.gemm_bf16(a, lda, b, ldb, k, m, out, ldo);
  }
  void attend(const Block& block) const { kernels.attention_block_bf16(block); }
};

}  // namespace kimi::cpu
