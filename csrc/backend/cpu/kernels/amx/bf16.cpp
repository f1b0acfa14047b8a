// Products and attention in bf16, in tiles (tdpbf16ps), with sums in float.
//
// The order of a sum follows from its length alone. Numbers are taken 32 at a time from the first one, and the last of them are
// filled up with zeros. Of such 32, products at even and at odd places are added up apart, each from zero and in ascending
// order; the two are added, and then to the sum. Every step rounds to nearest even and takes subnormals as zeros.
// tests/core/test_kernels_amx.py follows it bit by bit.
#include "backend/cpu/kernels/amx/tiles.h"
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/attention.h"
#include "backend/cpu/kernels/loops/bf16_lanes.h"

namespace kimi::cpu::amx {

void fill_bf16(KernelTable* table);

namespace {

// Sums += the products of kDepth numbers. lower: rows beyond the 16th are there.
template <bool lower>
KIMI_INLINE void multiply_step(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb) {
  load_tile<6>(b, 4 * ldb);
  load_tile<4>(a, 2 * lda);
  multiply_tiles<0, 4, 6>();
  load_tile<7>(b + 32, 4 * ldb);
  multiply_tiles<1, 4, 7>();
  if constexpr (lower) {
    load_tile<5>(a + 16 * lda, 2 * lda);
    multiply_tiles<2, 5, 6>();
    multiply_tiles<3, 5, 7>();
  }
}

// The last numbers of every sum, fewer than kDepth, filled up with zeros.
template <bool lower>
void multiply_last(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t rows) {
  alignas(64) uint16_t a_end[kRows * kDepth], b_end[kDepth * kColumns];
  for (int64_t r = 0; r < rows; ++r) _mm512_store_si512(a_end + r * kDepth, load_numbers(a + r * lda, k));
  for (int64_t p = 0; p < kDepth / 2; ++p)
    for (int64_t half = 0; half < 64; half += 32)
      _mm512_store_si512(b_end + p * 64 + half, 2 * p < k ? _mm512_loadu_si512(b + p * ldb * 2 + half) : _mm512_setzero_si512());
  multiply_step<lower>(a_end, kDepth, b_end, kColumns);
}

template <bool lower>
KIMI_INLINE void multiply_all(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t rows) {
  int64_t c = 0;
  for (; c + kDepth <= k; c += kDepth) multiply_step<lower>(a + c, lda, b + c * ldb, ldb);
  if (c < k) multiply_last<lower>(a + c, lda, b + c * ldb, ldb, k - c, rows);
}

// Sums += `rows` rows of a, [rows, lda], times b, [k / 2, ldb, 2].
void multiply(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t rows) {
  if (rows > 16)
    multiply_all<true>(a, lda, b, ldb, k, rows);
  else
    multiply_all<false>(a, lda, b, ldb, k, rows);
}

void clear_sums(int64_t rows) {
  clear_tile<0>();
  clear_tile<1>();
  if (rows <= 16) return;
  clear_tile<2>();
  clear_tile<3>();
}
void load_sums(const float* from, int64_t ld, int64_t rows) {
  load_tile<0>(from, 4 * ld);
  load_tile<1>(from + 16, 4 * ld);
  if (rows <= 16) return;
  load_tile<2>(from + 16 * ld, 4 * ld);
  load_tile<3>(from + 16 * ld + 16, 4 * ld);
}
void store_sums(float* to, int64_t ld, int64_t rows) {
  store_tile<0>(to, 4 * ld);
  store_tile<1>(to + 16, 4 * ld);
  if (rows <= 16) return;
  store_tile<2>(to + 16 * ld, 4 * ld);
  store_tile<3>(to + 16 * ld + 16, 4 * ld);
}

// Blocks of kRows rows of the product; into(first row, rows) takes the sums out of the tiles.
template <typename Into>
KIMI_INLINE void multiply_blocks(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m,
                                 const Into& into) {
  Tiles tiles;
  for (int64_t i = 0; i < m; i += kRows) {
    const int64_t rows = m - i < kRows ? m - i : kRows;
    tiles.shape(rows);
    clear_sums(rows);
    multiply(a + i * lda, lda, b, ldb, k, rows);
    into(i, rows);
  }
}

void gemm_bf16(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, float* out, int64_t ldo) {
  multiply_blocks(a, lda, b, ldb, k, m, [&](int64_t i, int64_t rows) { store_sums(out + i * ldo, ldo, rows); });
}

void gemm_bf16_rows(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                    int64_t ldo) {
  multiply_blocks(a, lda, b, ldb, k, m, [&](int64_t i, int64_t rows) {
    alignas(64) float sums[kRows * kColumns];
    store_sums(sums, kColumns, rows);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = sums + r * kColumns;
      store_numbers(out + (i + r) * ldo, 32, bf16_from_floats(_mm512_load_ps(row), _mm512_load_ps(row + 16)));
    }
  });
}

void gemm_bf16_pairs(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                     int64_t ldo) {
  multiply_blocks(a, lda, b, ldb, k, m, [&](int64_t i, int64_t rows) {
    alignas(64) float sums[kRows * kColumns];
    store_sums(sums, kColumns, rows);
    for (int64_t r = 0; r < rows; r += 2)
      for (int64_t lane = 0; lane < kColumns; lane += 16) {
        const float* row = sums + r * kColumns + lane;
        const __m512 next = r + 1 < rows ? _mm512_load_ps(row + kColumns) : _mm512_setzero_ps();
        store_pairs(out + ((i + r) / 2 * ldo + lane) * 2, 16, pairs(_mm512_load_ps(row), next));
      }
  });
}

// Values of `rows` columns, from pairs of keys [(n_keys + 1) / 2, ldv, 2] to rows of keys [rows, kMaxAttentionKeys]; keys that
// are missing to a multiple of kDepth become zeros.
KIMI_INLINE void transpose_values(const uint16_t* v, int64_t ldv, int64_t n_keys, int64_t rows, uint16_t* out) {
  for (int64_t row0 = 0; row0 < rows; row0 += 16)
    for (int64_t key = 0; key < n_keys; key += kDepth) {
      __m512i of_pair[16];
#pragma GCC unroll 16
      for (int p = 0; p < 16; ++p)
        of_pair[p] =
            key + 2 * p < n_keys ? load_pairs(v + ((key / 2 + p) * ldv + row0) * 2, rows - row0) : _mm512_setzero_si512();
      transpose(of_pair);
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) _mm512_store_si512(out + (row0 + r) * kMaxAttentionKeys + key, of_pair[r]);
    }
}

void attention_block_bf16(const AttentionBlockBf16& block) {
  Tiles tiles;
  float* scores = block.scores;  // [n_keys, kColumns]
  for (int64_t key = 0; key < block.n_keys; key += kRows) {
    const int64_t rows = block.n_keys - key < kRows ? block.n_keys - key : kRows;
    tiles.shape(rows);
    clear_sums(rows);
    multiply(block.k1 + key * block.ldk1, block.ldk1, block.q_t, kColumns, block.dk1, rows);
    if (block.dk2) multiply(block.k2 + key * block.ldk2, block.ldk2, block.q_t + block.dk1 * kColumns, kColumns, block.dk2, rows);
    store_sums(scores + key * kColumns, kColumns, rows);
  }
  softmax_block<16, 2>(block, scores);
  uint16_t* weights = pair_weights<2>(scores, block.n_keys);
  const int64_t n_keys = (block.n_keys + kDepth - 1) / kDepth * kDepth;
  for (int64_t key = (block.n_keys + 1) / 2 * 2; key < n_keys; key += 2)
    for (int64_t half = 0; half < 64; half += 32) store_numbers(weights + key * kColumns + half, 32, _mm512_setzero_si512());
  for (int64_t d = 0; d < block.dv; d += kRows) {
    const int64_t rows = block.dv - d < kRows ? block.dv - d : kRows;
    alignas(64) uint16_t values[kRows * kMaxAttentionKeys];
    transpose_values(block.v + 2 * d, block.ldv, block.n_keys, rows, values);
    tiles.shape(rows);
    load_sums(block.o_t + d * kColumns, kColumns, rows);
    multiply(values, kMaxAttentionKeys, weights, kColumns, n_keys, rows);
    store_sums(block.o_t + d * kColumns, kColumns, rows);
  }
}

}  // namespace

void fill_bf16(KernelTable* table) {
  table->attention_block_bf16 = attention_block_bf16;
  table->gemm_bf16 = gemm_bf16;
  table->gemm_bf16_rows = gemm_bf16_rows;
  table->gemm_bf16_pairs = gemm_bf16_pairs;
  table->latent_block_f16 = nullptr;  // vdpbf16ps is slower than float multiply-adds where there are tiles
}

}  // namespace kimi::cpu::amx
