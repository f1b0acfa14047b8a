// Attention in bf16: products of pairs (vdpbf16ps), sums and softmax in float.
//
// Two numbers that go into one sum lie side by side in 32 bits: neighbours of a row on the side that is broadcast (keys), two
// rows interleaved on the side that lies in lanes (queries, weights), two keys interleaved where the sum runs over keys (values).
#include "backend/cpu/kernels/loops/ahead.h"
#include "backend/cpu/kernels/loops/attention.h"
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "backend/cpu/kernels/loops/bf16_lanes.h"

namespace kimi::cpu::avx512 {

void fill_bf16(KernelTable* table);

namespace {

typedef uint32_t Pair __attribute__((aligned(1), may_alias));

// acc += the two products of every lane. In assembler, because GCC 12 copies accumulators around the intrinsic.
KIMI_INLINE void add_pairs(__m512& acc, __m512i lanes, __m512i broadcast) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(lanes), "v"(broadcast));
}
KIMI_INLINE void add_pairs_of(__m512& acc, __m512i lanes, const uint16_t* pair) {
  __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(lanes), "m"(*reinterpret_cast<const Pair*>(pair)));
}

// acc[i][v] += sum over n pairs of a's row i with 16 lanes of b. Row i of a starts i * kRow or i * a_row numbers after a, its
// pairs are a_pair apart. b: [n, ldb, 2].
template <int NV, int MR, int kRow>
KIMI_INLINE void sum_tile(const uint16_t* a, int64_t a_row, int64_t a_pair, const uint16_t* b, int64_t ldb, int64_t n,
                          loops::Fetching& fetching, __m512 (&acc)[MR][NV]) {
  if constexpr (kRow > 0) a_row = kRow;
  for (int64_t p = 0; p < n; ++p) {
    __m512i lanes[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) lanes[v] = _mm512_loadu_si512(b + 32 * v);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) {
      if constexpr (NV == 1) {
        add_pairs_of(acc[i][0], lanes[0], a + i * a_row);
      } else {
        const __m512i pair = _mm512_set1_epi32(static_cast<int32_t>(*reinterpret_cast<const Pair*>(a + i * a_row)));
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) add_pairs(acc[i][v], lanes[v], pair);
      }
    }
    if constexpr (kRow == 2) __builtin_prefetch(a + 4 * MR - 1);  // the end of what the next tile wants
    a += a_pair;
    b += 2 * ldb;
    fetching.step();
  }
}

// What becomes of a tile's sums.
struct IntoFloats {  // out[i * ld + lane], added to what is there
  float* out;
  int64_t ld;
  bool add;
  template <int NV, int MR>
  __attribute__((always_inline)) inline void operator()(int64_t i0, __m512 (&acc)[MR][NV]) const {
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        float* to = out + (i0 + i) * ld + 16 * v;
        _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), acc[i][v]) : acc[i][v]);
      }
  }
};
struct IntoRows {  // bf16 out[i * ld + lane]
  uint16_t* out;
  int64_t ld;
  template <int NV, int MR>
  __attribute__((always_inline)) inline void operator()(int64_t i0, __m512 (&acc)[MR][NV]) const {
    static_assert(NV == 2);
#pragma GCC unroll 32
    for (int i = 0; i < MR; ++i) _mm512_storeu_si512(out + (i0 + i) * ld, bf16_from_floats(acc[i][0], acc[i][1]));
  }
};
struct IntoPairs {  // bf16 out[(i / 2 * ld + lane) * 2 + i % 2]; a last row without partner gets zeros
  uint16_t* out;
  int64_t ld;
  template <int NV, int MR>
  __attribute__((always_inline)) inline void operator()(int64_t i0, __m512 (&acc)[MR][NV]) const {
#pragma GCC unroll 32
    for (int i = 0; i < MR; i += 2)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        const __m512 next = i + 1 < MR ? acc[i + 1 < MR ? i + 1 : i][v] : _mm512_setzero_ps();
        _mm512_storeu_si512(out + ((i0 + i) / 2 * ld + 16 * v) * 2, pairs(acc[i][v], next));
      }
  }
};

template <int NV, int MR, int kRow, typename Into>
KIMI_INLINE void sum_rows(const uint16_t* a, int64_t a_row, int64_t a_pair, const uint16_t* b, int64_t ldb, int64_t n, int64_t i,
                          loops::Fetching& fetching, const Into& into) {
  __m512 acc[MR][NV] = {};
  sum_tile<NV, MR, kRow>(a + i * a_row, a_row, a_pair, b, ldb, n, fetching, acc);
  into(i, acc);
}

template <int NV, int MR, int kRow, typename Into>
void sum_last_rows(const uint16_t* a, int64_t a_row, int64_t a_pair, const uint16_t* b, int64_t ldb, int64_t n, int64_t i,
                   int64_t count, loops::Fetching& fetching, const Into& into) {
  if (count == MR) return sum_rows<NV, MR, kRow>(a, a_row, a_pair, b, ldb, n, i, fetching, into);
  if constexpr (MR > 1) sum_last_rows<NV, MR - 1, kRow>(a, a_row, a_pair, b, ldb, n, i, count, fetching, into);
}

// All m rows of a.
template <int NV, int MR, int kRow, typename Into>
KIMI_INLINE void multiply(const uint16_t* a, int64_t a_row, int64_t a_pair, const uint16_t* b, int64_t ldb, int64_t n, int64_t m,
                          const Into& into, const Ahead& ahead = {}) {
  loops::Fetching fetching = loops::Fetching::over(ahead, (m + MR - 1) / MR * n);
  int64_t i = 0;
  for (; i + MR <= m; i += MR) sum_rows<NV, MR, kRow>(a, a_row, a_pair, b, ldb, n, i, fetching, into);
  if (i < m) sum_last_rows<NV, MR - 1, kRow>(a, a_row, a_pair, b, ldb, n, i, m - i, fetching, into);
}

void attention_block_bf16(const AttentionBlockBf16& block) {
  constexpr int64_t kLanes = 32;
  float* scores = block.scores;
  multiply<2, 12, 0>(block.k1, block.ldk1, 2, block.q_t, kLanes, block.dk1 / 2, block.n_keys, IntoFloats{scores, kLanes, false});
  if (block.dk2)
    multiply<2, 12, 0>(block.k2, block.ldk2, 2, block.q_t + block.dk1 * kLanes, kLanes, block.dk2 / 2, block.n_keys,
                       IntoFloats{scores, kLanes, true});
  softmax_block<16, 2>(block, scores);
  const uint16_t* weights = pair_weights<2>(scores, block.n_keys);
  multiply<2, 12, 2>(block.v, 2, 2 * block.ldv, weights, kLanes, (block.n_keys + 1) / 2, block.dv,
                     IntoFloats{block.o_t, kLanes, true});
}

void gemm_bf16(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, float* out, int64_t ldo) {
  multiply<2, 12, 0>(a, lda, 2, b, ldb, k / 2, m, IntoFloats{out, ldo, false});
}

void gemm_bf16_rows(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                    int64_t ldo) {
  multiply<2, 12, 0>(a, lda, 2, b, ldb, k / 2, m, IntoRows{out, ldo});
}

void gemm_bf16_pairs(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                     int64_t ldo) {
  multiply<2, 12, 0>(a, lda, 2, b, ldb, k / 2, m, IntoPairs{out, ldo});
}

void bf16_from_f32_row(const float* x, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 low = load_floats(x + i, n - i), high = n - i > 16 ? load_floats(x + i + 16, n - i - 16) : _mm512_setzero_ps();
    store_numbers(out + i, n - i, bf16_from_floats(low, high));
  }
}

void bf16_pairs_from_f32(const float* x, int64_t ld, int64_t n_rows, int64_t n_cols, float scale, uint16_t* out, int64_t ldo) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t r = 0; r < n_rows; r += 2)
    for (int64_t c = 0; c < n_cols; c += 16) {
      const __m512 low = load_floats(x + r * ld + c, n_cols - c);
      const __m512 high = r + 1 < n_rows ? load_floats(x + (r + 1) * ld + c, n_cols - c) : _mm512_setzero_ps();
      store_pairs(out + (r / 2 * ldo + c) * 2, n_cols - c, pairs(_mm512_mul_ps(low, factor), _mm512_mul_ps(high, factor)));
    }
}

KIMI_INLINE __m512i bf16_from_f16(__m512i halves) {
  const __m512 low = _mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
               high = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1));
  return bf16_from_floats(low, high);
}

template <bool halves>
void pack_bf16(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, uint16_t* out) {
  constexpr int64_t kLanes = 32;
  for (int64_t k0 = 0; k0 < k; k0 += 32)
    for (int64_t lane0 = 0; lane0 < kLanes; lane0 += 16) {
      __m512i rows[16];
#pragma GCC unroll 16
      for (int r = 0; r < 16; ++r) {
        rows[r] = _mm512_setzero_si512();
        if (lane0 + r >= n_rows) continue;
        const auto* from = reinterpret_cast<const uint16_t*>(static_cast<const uint8_t*>(w) + (lane0 + r) * row_bytes) + k0;
        __builtin_prefetch(from + 256);  // this many rows are more streams than the hardware prefetcher follows
        rows[r] = load_numbers(from, k - k0);
        if (halves) rows[r] = bf16_from_f16(rows[r]);
      }
      transpose(rows);
      const int64_t n_pairs = k - k0 < 32 ? (k - k0) / 2 : 16;
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i)
        if (i < n_pairs) _mm512_storeu_si512(out + ((k0 / 2 + i) * kLanes + lane0) * 2, rows[i]);
    }
}

// Rows of the cache as keys, 32 numbers of every row after the other, [(rank + rope + 31) / 32, kGroup, 32], and their first rank
// numbers as values, keys in pairs: [(n_rows + 1) / 2, rank, 2].
template <int kGroup>
KIMI_INLINE void unpack_latents(const uint16_t* rows, int64_t n_rows, int64_t rank, int64_t rope, uint16_t* keys,
                                uint16_t* values) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low_order = _mm512_load_si512(kOrder), high_order = _mm512_add_epi16(low_order, _mm512_set1_epi16(16));
  const int64_t width = rank + rope;
  for (int64_t r = 0; r < n_rows; r += 2) {
    const uint16_t *row = rows + r * width, *next = r + 1 < n_rows ? row + width : nullptr;
    uint16_t *key = keys + r * 32, *value = values + r * rank;
    for (int64_t c = 0; c < width; c += 32, key += kGroup * 32) {
      const int64_t left = width - c, values_left = rank - c;
      const __m512i one = bf16_from_f16(load_numbers(row + c, left));
      const __m512i two = next ? bf16_from_f16(load_numbers(next + c, left)) : _mm512_setzero_si512();
      _mm512_storeu_si512(key, one);
      _mm512_storeu_si512(key + 32, two);
      if (values_left > 0) store_pairs(value + 2 * c, values_left, _mm512_permutex2var_epi16(one, low_order, two));
      if (values_left > 16) store_pairs(value + 2 * c + 32, values_left - 16, _mm512_permutex2var_epi16(one, high_order, two));
    }
  }
}

// Rows are converted a few at a time, so that they are still in the first-level cache when they are multiplied.
template <int NV>
void attend_latents(const LatentBlockF16& block) {
  constexpr int kLanes = 16 * NV, kGroup = NV == 1 ? 16 : 12, kValueRows = NV == 1 ? 16 : 12;
  static_assert(kGroup <= kLatentGroup);
  const int64_t width = block.rank + block.rope;
  float* scores = block.scratch;
  auto* keys = reinterpret_cast<uint16_t*>(scores + (kMaxAttentionKeys + kGroup) * kLanes);
  uint16_t* values = keys + kGroup * ((width + 31) / 32 * 32);
  for (int64_t key = 0; key < block.n_keys; key += kGroup) {
    const int64_t count = block.n_keys - key < kGroup ? block.n_keys - key : kGroup;
    const uint16_t *rows = block.rows + key * width, *next = rows + count * width;
    unpack_latents<kGroup>(rows, count, block.rank, block.rope, keys, values + key * block.rank);
    const int64_t left = block.n_keys - key - count;  // of this block; then come those ahead
    Ahead ahead{reinterpret_cast<const uint8_t*>(next), 2 * width * (left < kGroup ? left : kGroup)};
    if (left == 0) ahead = {block.ahead.first, block.ahead.bytes < 2 * width * kGroup ? block.ahead.bytes : 2 * width * kGroup};
    loops::Fetching fetching = loops::Fetching::over(ahead, width / 2);
    __m512 acc[kGroup][NV] = {};
    for (int64_t c = 0; c < width; c += 32)
      sum_tile<NV, kGroup, 32>(keys + c * kGroup, 32, 2, block.q_t + c * kLanes, kLanes, (width - c < 32 ? width - c : 32) / 2,
                               fetching, acc);
    IntoFloats{scores, kLanes, false}(key, acc);  // rows beyond the last are nobody's
  }
  softmax_block<16, NV>(block, scores);
  const uint16_t* weights = pair_weights<NV>(scores, block.n_keys);
  multiply<NV, kValueRows, 2>(values, 2, 2 * block.rank, weights, kLanes, (block.n_keys + 1) / 2, block.rank,
                              IntoFloats{block.o_t, kLanes, true});
}

void latent_block_f16(const LatentBlockF16& block) {
  if (block.lanes == 16)
    attend_latents<1>(block);
  else
    attend_latents<2>(block);
}

}  // namespace

void fill_bf16(KernelTable* table) {
  table->attention_block_bf16 = attention_block_bf16;
  table->gemm_bf16 = gemm_bf16;
  table->gemm_bf16_rows = gemm_bf16_rows;
  table->gemm_bf16_pairs = gemm_bf16_pairs;
  table->bf16_from_f32_row = bf16_from_f32_row;
  table->pack_bf16[static_cast<int>(quant::Type::F16)] = pack_bf16<true>;
  table->pack_bf16[static_cast<int>(quant::Type::BF16)] = pack_bf16<false>;
  table->bf16_pairs_from_f32 = bf16_pairs_from_f32;
  table->latent_block_f16 = latent_block_f16;
}

}  // namespace kimi::cpu::avx512
