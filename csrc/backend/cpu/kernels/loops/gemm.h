// The float matrix kernel: a tile of MR rows of `a` against `lanes` columns of `b`, all sums in registers.
// Every output is one chain of fused multiply-adds over k in ascending order, whatever the tile it falls into.
#pragma once
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "backend/cpu/kernels/loops/vec.h"

namespace kimi::cpu {
namespace {

// NV vectors of W lanes; kUnitRow: rows of `a` are adjacent floats (a packed or transposed operand).
template <int W, int NV, int MR, bool kUnitRow>
KIMI_INLINE void gemm_tile(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, int64_t k, float* out,
                           int64_t ldc, bool accumulate) {
  using F = typename Vec<W>::F;
  F acc[MR][NV];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[i][v] = accumulate ? load<W>(out + i * ldc + v * W) : F{};
  for (int64_t p = 0; p < k; ++p) {
    F column[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) column[v] = load<W>(b + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const float value = kUnitRow ? a[i] : a[i * a_row];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[i][v] += column[v] * value;
    }
    a += a_col;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store<W>(out + i * ldc + v * W, acc[i][v]);
}

template <int W, int NV, int MR, bool kUnitRow>
void gemm_remainder(int64_t m, const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, int64_t k, float* out,
                    int64_t ldc, bool accumulate) {
  if (m == MR) return gemm_tile<W, NV, MR, kUnitRow>(a, a_row, a_col, b, ldb, k, out, ldc, accumulate);
  if constexpr (MR > 1) gemm_remainder<W, NV, MR - 1, kUnitRow>(m, a, a_row, a_col, b, ldb, k, out, ldc, accumulate);
}

template <int W, int NV, int MR, bool kUnitRow>
void gemm_rows(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, int64_t k, int64_t m, float* out,
               int64_t ldc, bool accumulate) {
  int64_t i = 0;
  for (; i + MR <= m; i += MR)
    gemm_tile<W, NV, MR, kUnitRow>(a + i * a_row, a_row, a_col, b, ldb, k, out + i * ldc, ldc, accumulate);
  if (i < m)
    gemm_remainder<W, NV, MR - 1, kUnitRow>(m - i, a + i * a_row, a_row, a_col, b, ldb, k, out + i * ldc, ldc, accumulate);
}

template <int W, int NV, int MR>
void gemm_f32(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, int64_t k, int64_t m, float* out,
              int64_t ldc, bool accumulate) {
  if (a_row == 1)
    gemm_rows<W, NV, MR, true>(a, a_row, a_col, b, ldb, k, m, out, ldc, accumulate);
  else
    gemm_rows<W, NV, MR, false>(a, a_row, a_col, b, ldb, k, m, out, ldc, accumulate);
}

// [n_rows, k] with rows `ld` apart -> [k, lanes], lanes = 2 W.
template <int W>
void transpose_panel(const float* w, int64_t ld, int64_t n_rows, int64_t k, float* out) {
  constexpr int kLanes = 2 * W;
  for (int64_t r0 = 0; r0 < kLanes; r0 += 4) {
    const int64_t rows = n_rows - r0 < 4 ? (n_rows > r0 ? n_rows - r0 : 0) : 4;
    if (rows == 4) {
      const float *w0 = w + r0 * ld, *w1 = w0 + ld, *w2 = w1 + ld, *w3 = w2 + ld;
      for (int64_t p = 0; p < k; ++p) {
        typename Vec<4>::F four = {w0[p], w1[p], w2[p], w3[p]};
        store<4>(out + p * kLanes + r0, four);
      }
    } else {
      for (int64_t p = 0; p < k; ++p)
        for (int64_t r = 0; r < 4; ++r) out[p * kLanes + r0 + r] = r < rows ? w[(r0 + r) * ld + p] : 0.0f;
    }
  }
}

// ---- few rows: dot products along k ------------------------------------------------------------------------------

// One weight; in a mapped file it may lie at any address.
template <typename T>
KIMI_INLINE T load_one(const T* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(T));
  return value;
}

template <int W>
KIMI_INLINE typename Vec<W>::F load_bf16(const uint16_t* p) {
  using I = typename Vec<W>::I;
  const I wide = __builtin_convertvector(*reinterpret_cast<const typename Vec<W>::HU*>(p), I) << 16;
  return reinterpret_cast<typename Vec<W>::F>(wide);
}
template <int W>
KIMI_INLINE typename Vec<W>::F load_f16(const uint16_t* p) {
  using F = typename Vec<W>::F;
#if defined(__AVX512F__)
  if constexpr (W == 16) {
    return reinterpret_cast<F>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  } else
#endif
#if defined(__F16C__)
      if constexpr (W == 8) {
    return reinterpret_cast<F>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  } else
#endif
  {
    F out;
    for (int i = 0; i < W; ++i) out[i] = f32_from_f16(load_one(p + i));
    return out;
  }
}

struct ReadF32 {
  using Element = float;
  template <int W>
  __attribute__((always_inline)) static inline typename Vec<W>::F at(const float* p) {
    return load<W>(p);
  }
  __attribute__((always_inline)) static inline float one(const float* p) { return load_one(p); }
};
struct ReadF16 {
  using Element = uint16_t;
  template <int W>
  __attribute__((always_inline)) static inline typename Vec<W>::F at(const uint16_t* p) {
    return load_f16<W>(p);
  }
  __attribute__((always_inline)) static inline float one(const uint16_t* p) { return f32_from_f16(load_one(p)); }
};
struct ReadBF16 {
  using Element = uint16_t;
  template <int W>
  __attribute__((always_inline)) static inline typename Vec<W>::F at(const uint16_t* p) {
    return load_bf16<W>(p);
  }
  __attribute__((always_inline)) static inline float one(const uint16_t* p) { return f32_from_bf16(load_one(p)); }
};

template <int W, typename Read>
void gemv_float(const void* w, int64_t row_bytes, int64_t n_rows, const float* x, int64_t x_stride, int64_t k, int64_t n_x,
                float* out, int64_t out_stride) {
  using F = typename Vec<W>::F;
  constexpr int kUnroll = 4;
  for (int64_t r = 0; r < n_rows; ++r) {
    const auto* row = reinterpret_cast<const typename Read::Element*>(static_cast<const char*>(w) + r * row_bytes);
    for (int64_t j = 0; j < n_x; ++j) {
      const float* xj = x + j * x_stride;
      F acc[kUnroll] = {};
      int64_t p = 0;
      for (; p + kUnroll * W <= k; p += kUnroll * W)
#pragma GCC unroll 4
        for (int u = 0; u < kUnroll; ++u) acc[u] += Read::template at<W>(row + p + u * W) * load<W>(xj + p + u * W);
      for (; p + W <= k; p += W) acc[0] += Read::template at<W>(row + p) * load<W>(xj + p);
      float total = sum<W>((acc[0] + acc[1]) + (acc[2] + acc[3]));
      for (; p < k; ++p) total += Read::one(row + p) * xj[p];
      out[j * out_stride + r] = total;
    }
  }
}

template <int W, typename Read>
void decode_float_row(const void* blocks, float* out, int64_t n) {
  const auto* in = static_cast<const typename Read::Element*>(blocks);
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(out + i, Read::template at<W>(in + i));
  for (; i < n; ++i) out[i] = Read::one(in + i);
}

}  // namespace
}  // namespace kimi::cpu
