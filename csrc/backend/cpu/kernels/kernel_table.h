// Every function that an instruction set may fill, on one page. A table is plain data: each instruction set (base/isa.h) fills
// its own in its own translation units; dispatch.cpp picks one. All functions are noexcept in spirit: they
// allocate nothing, check nothing and log nothing; the op that calls them has checked.
//
// One rule holds for all of them: the value of an output element depends only on its own inputs, never on how many
// other rows or columns are computed in the same call. That is what makes results independent of threads and batches.
#pragma once
#include <cstdint>

#include "quant/format.h"

namespace kimi::cpu {

// 32 activations quantized to int8, with all that a product wants to know of them: one line of the cache. value = scale * q
struct Q8Block {
  int8_t q[32];  // |q| <= 127
  float scale;
  float sum;             // scale * isum
  float half_sum[2];     // scale * half_isum
  int32_t isum;          // sum of the 32 q
  int32_t half_isum[2];  // of the first and the last 16
  int32_t unused;
};
static_assert(sizeof(Q8Block) == 64);

// Activation rows quantized to int8. A view into the caller's memory.
struct Q8Rows {
  Q8Block* blocks;  // [n_rows, k / 32]
  int64_t k;        // a multiple of 32
};

// Bytes that a GEMM fetches into the second-level cache while it computes: the weights that are unpacked after it.
struct Ahead {
  const uint8_t* first = nullptr;
  int64_t bytes = 0;
};

// `lanes` weight rows unpacked side by side for a GEMM. value[row, i] = scale[row, i / group] * (q[row, i] - bias) - min[row, i /
// group].
struct PanelQ8 {
  uint8_t* q;    // [k / 4, lanes, 4]   at most max_q
  float* scale;  // [k / group, lanes]
  float* min;    // [k / group, lanes]; meaningful when has_min
  int32_t bias, max_q;
  int32_t group;  // 16 or 32 elements per scale
  bool has_min;
  int64_t k;
  Ahead ahead{};
};

// A block of keys and values for one tile of queries; queries lie side by side in lanes.
struct AttentionBlock {
  int64_t lanes;     // tile_lanes, or half of it
  const float* q_t;  // [dk1 + dk2, lanes] queries, already multiplied by the softmax scale
  const float* k1;   // [n_keys, ldk1], dk1 columns
  const float* k2;   // [n_keys, ldk2], dk2 more columns; unused when dk2 == 0
  const float* v;    // [n_keys, ldv], dv columns
  int64_t dk1, dk2, dv, ldk1, ldk2, ldv;
  int64_t n_keys;           // at most kMaxAttentionKeys
  int64_t key0;             // absolute position of the first key
  const int32_t* last_key;  // [lanes] last absolute position that a lane may see; nullptr: all keys
  float* m;                 // [lanes] running maximum, starts at -inf
  float* l;                 // [lanes] running sum, starts at 0
  float* o_t;               // [dv, lanes] running output, starts at 0
  float* scores;            // [kMaxAttentionKeys, lanes] scratch
};
constexpr int64_t kMaxAttentionKeys = 128;

// The same with queries, keys and values as bf16. Two numbers that go into one sum lie side by side.
struct AttentionBlockBf16 {
  int64_t lanes;        // tile_lanes
  const uint16_t* q_t;  // [(dk1 + dk2) / 2, lanes, 2] queries, already multiplied by the softmax scale
  const uint16_t* k1;   // [n_keys, ldk1], dk1 columns
  const uint16_t* k2;   // [n_keys, ldk2], dk2 more columns; unused when dk2 == 0
  const uint16_t* v;    // [(n_keys + 1) / 2, ldv, 2] pairs of keys, dv columns; the partner of an odd last key is zeros
  int64_t dk1, dk2, dv, ldk1, ldk2, ldv;  // dk1 and dk2 are even
  int64_t n_keys, key0;                   // as in AttentionBlock, and so are the others
  const int32_t* last_key;
  float *m, *l, *o_t;
  float* scores;
};

// The same where keys are latent rows of the cache and their first `rank` numbers the values; multiplied as bf16.
struct LatentBlockF16 {
  int64_t lanes;           // tile_lanes, or half of it
  const uint16_t* q_t;     // bf16 [(rank + rope) / 2, lanes, 2] queries, already multiplied by the softmax scale
  const uint16_t* rows;    // f16 [n_keys, rank + rope]
  Ahead ahead;             // rows that the caller will ask for next: their beginning is fetched meanwhile
  int64_t rank, rope, dv;  // rank + rope is even, dv == rank
  int64_t n_keys, key0;    // as in AttentionBlock, and so are the others
  const int32_t* last_key;
  float *m, *l, *o_t;
  float* scratch;  // latent_f16_scratch_floats(lanes, rank, rope)
};
constexpr int64_t kLatentGroup = 16;
constexpr int64_t latent_f16_scratch_floats(int64_t lanes, int64_t rank, int64_t rope) {
  return (kMaxAttentionKeys + kLatentGroup) * lanes + (kLatentGroup * (rank + rope + 32) + kMaxAttentionKeys * rank + 1) / 2;
}

// The same for kLatentLanes queries and keys that are latent rows of bytes (q8_0 in backend/kv_view.h); the first dv of their
// numbers are the values.
struct LatentBlockQ8 {
  const int8_t* q;       // [n_blocks, 8, kLatentLanes, 4] queries, already multiplied by the softmax scale
  const float* q_scale;  // [n_blocks, kLatentLanes]
  const int32_t* q_sum;  // [n_blocks, kLatentLanes] sum of a block's 32 q
  const uint8_t* rows;   // keys, row_bytes apart
  Ahead ahead;           // rows that this thread will probably be asked for next: they are fetched meanwhile
  int64_t row_bytes, n_blocks, dv;
  int64_t n_keys, key0;  // as in AttentionBlock, and so are the others
  const int32_t* last_key;
  float *m, *l, *o_t;
  float* scratch;  // latent_q8_scratch_floats(n_blocks)
};
constexpr int64_t kLatentLanes = 16;
constexpr int64_t latent_q8_scratch_floats(int64_t n_blocks) {
  return kMaxAttentionKeys * (16 + 16 + 8) + (kMaxAttentionKeys + 1) * ((n_blocks + 15) / 16 * 16);
}

using quant::kMaxTypes;  // tables by quant::Type

struct KernelTable {
  const char* name;  // of the instruction set: "avx2"

  // ---- int8 arithmetic: quantized weights x int8 activations ------------------------------------------------------
  // x [k] -> out [k / 32], k a multiple of 32
  void (*quantize_row)(const float* x, int64_t k, Q8Block* out);

  // Few activation rows: out[j * out_stride + r] = dot(weight row r, activation row j) for r < n_rows, j < n_x.
  // Weight rows are `row_bytes` apart; `next` is where the rows begin that are likely to follow and are fetched near the end, or
  // nullptr. For every quantized type.
  using Gemv = void (*)(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out,
                        int64_t out_stride, const uint8_t* next);
  Gemv gemv_q8[kMaxTypes];

  // Many activation rows: unpack `n_rows` (<= panel_lanes) weight rows of k elements; missing rows become zeros.
  int64_t panel_lanes;
  using PackPanel = void (*)(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out);
  PackPanel pack_panel_q8[kMaxTypes];  // sets bias, max_q, group, has_min, k and fills the arrays
  // out[j * out_stride + lane] = dot(lane's weights, activation row rows[j]); rows == nullptr: row j. All lanes are written.
  void (*gemm_panel_q8)(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride);

  // ---- float arithmetic ------------------------------------------------------------------------------------------
  // out[j * out_stride + r] = dot(w row r, x + j * x_stride); weights F32, F16 or BF16, activations float.
  using GemvFloat = void (*)(const void* w, int64_t row_bytes, int64_t n_rows, const float* x, int64_t x_stride, int64_t k,
                             int64_t n_x, float* out, int64_t out_stride);
  GemvFloat gemv_float[kMaxTypes];
  int64_t tile_lanes;  // lanes of the float tile: 2 vectors
  // out[i * ldc + lane] (+)= sum_k a[i * a_row + k * a_col] * b[k * ldb + lane] for `lanes` = tile_lanes, i < m.
  void (*gemm_f32)(const float* a, int64_t a_row, int64_t a_col, const float* b, int64_t ldb, int64_t k, int64_t m, float* out,
                   int64_t ldc, bool accumulate);
  // `n_rows` (<= tile_lanes) float rows of k elements, `ld` apart -> [k, tile_lanes]; missing rows become zeros.
  void (*transpose_panel)(const float* w, int64_t ld, int64_t n_rows, int64_t k, float* out);
  void (*f32_from_f16_row)(const uint16_t* x, int64_t n, float* out);
  void (*f16_from_f32_row)(const float* x, int64_t n, uint16_t* out);
  // The first n numbers of whole blocks of 32: out = scale * (byte - 128).
  void (*f32_from_q8_row)(const uint8_t* bytes, const uint16_t* scales, int64_t n, float* out);
  void (*decode_row[kMaxTypes])(const void* blocks, float* out, int64_t n);  // any type -> float, exact

  // ---- attention -------------------------------------------------------------------------------------------------
  void (*attention_block)(const AttentionBlock& block);
  void (*latent_block_q8)(const LatentBlockQ8& block);  // nullptr: rows are decoded for attention_block

  // ---- bf16: all of them but the last, or nullptr ----------------------------------------------------------------
  void (*attention_block_bf16)(const AttentionBlockBf16& block);
  // a [m, lda] times b [k / 2, ldb, 2] for tile_lanes columns; out float [m, ldo], or bf16, [m, ldo] or, rows in pairs, [(m + 1)
  // / 2, ldo, 2].
  void (*gemm_bf16)(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, float* out,
                    int64_t ldo);
  void (*gemm_bf16_rows)(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                         int64_t ldo);
  void (*gemm_bf16_pairs)(const uint16_t* a, int64_t lda, const uint16_t* b, int64_t ldb, int64_t k, int64_t m, uint16_t* out,
                          int64_t ldo);
  void (*bf16_from_f32_row)(const float* x, int64_t n, uint16_t* out);
  // `n_rows` (<= tile_lanes) weight rows of k elements, k even, F16 or BF16 -> [k / 2, tile_lanes, 2]; missing rows become zeros.
  using PackBf16 = void (*)(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, uint16_t* out);
  PackBf16 pack_bf16[kMaxTypes];
  // scale * x, rows in pairs: [n_rows, ld] -> [(n_rows + 1) / 2, ldo, 2]; the partner of an odd last row is zeros.
  void (*bf16_pairs_from_f32)(const float* x, int64_t ld, int64_t n_rows, int64_t n_cols, float scale, uint16_t* out,
                              int64_t ldo);
  void (*latent_block_f16)(const LatentBlockF16& block);  // nullptr: rows are decoded for attention_block

  // ---- rows ------------------------------------------------------------------------------------------------------
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t n, float* out);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out);
  void (*silu_mul)(const float* gate, const float* up, int64_t n, float* out);  // silu(gate) * up
  void (*gelu_tanh)(float* x, int64_t n);
  void (*gelu_erf)(float* x, int64_t n);
  void (*rotate_pairs)(float* x, const float* cos_sin, int64_t n_pairs);   // cos_sin [n_pairs, 2]; pairs (2j, 2j+1)
  void (*add_scaled)(const float* x, float scale, int64_t n, float* out);  // out += scale * x
};

// Each instruction set fills a zeroed table; dispatch.cpp owns the tables and sets their names. One that adds to another begins
// with the other's table: avx2_vnni with that of avx2, avx512 with that of avx512_vnni, amx with that of avx512.
void fill_generic(KernelTable* table);
void fill_avx2(KernelTable* table);
void fill_avx2_vnni(KernelTable* table);
void fill_avx512_vnni(KernelTable* table);
void fill_avx512(KernelTable* table);
void fill_amx(KernelTable* table);

// The int8 half, translation units of its own in each instruction set that does not take its parent's.
void fill_int8_generic(KernelTable* table);
void fill_int8_avx2(KernelTable* table);
void fill_int8_avx512_vnni(KernelTable* table);

// name: as for choose_isa (base/isa.h), with its errors.
const KernelTable& select_kernels(const char* name);

}  // namespace kimi::cpu
