// latent_block_q8 of the avx512-vnni table: a tile of 16 queries against latent rows of bytes, in integers on both sides.
//
// Scores: 4 numbers of a key are broadcast against the same 4 of all queries; 8 vpdpbusd a block of 32, then the two scales.
// Outputs: four keys go into one vpdpbusd, so the weights become bytes as well: weight * (the key's scale of the block), as a
// share of the largest such product, in 255 steps. One scale a block of 32 numbers and up to 128 keys puts them back.
#include "backend/cpu/kernels/avx512_vnni/parts.h"
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "backend/cpu/kernels/loops/vec.h"

namespace kimi::cpu::avx512_vnni {
namespace {

constexpr int kLanes = static_cast<int>(kLatentLanes);
constexpr int kTile = 8;  // keys whose scores are in registers at a time
constexpr int64_t kQuads = kMaxAttentionKeys / 4;
constexpr float kNever = -1e30f;

typedef int32_t Four __attribute__((aligned(1), may_alias));

// What one block of keys needs beside its arguments.
struct Scratch {
  float* scores;     // [kMaxAttentionKeys, kLanes], later the weights
  float* scales;     // [kMaxAttentionKeys, scale_stride] of the keys, later as shares of the block's largest
  float* largest;    // [scale_stride]
  uint8_t* quads;    // [kQuads, 256]: 64 numbers of 4 keys, a number's four side by side
  uint8_t* weights;  // [2, kQuads, kLanes, 4]
  int64_t scale_stride;

  Scratch(float* memory, int64_t n_blocks) : scale_stride((n_blocks + 15) / 16 * 16) {
    scores = memory;
    scales = scores + kMaxAttentionKeys * kLanes;
    largest = scales + kMaxAttentionKeys * scale_stride;
    quads = reinterpret_cast<uint8_t*>(largest + scale_stride);
    weights = quads + kQuads * 256;
  }
};

// acc += four unsigned numbers of a times four signed ones of b, in every lane. In assembler, because GCC 12 copies
// accumulators around the intrinsic, three moves for one of these.
KIMI_INLINE void add_dot(__m512i& acc, __m512i a, __m512i b) { __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b)); }

KIMI_INLINE void add_dot_four(__m512i& acc, __m512i a, const uint8_t* b) {
  __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*reinterpret_cast<const Four*>(b)));
}

KIMI_INLINE __m512i broadcast_four(const void* bytes) {
  int32_t four;
  __builtin_memcpy(&four, bytes, 4);
  return _mm512_set1_epi32(four);
}

// Scales of all keys as floats, and the largest of each block.
KIMI_INLINE void read_scales(const LatentBlockQ8& block, const Scratch& s) {
  const int64_t at = block.n_blocks * 32;
  for (int64_t b = 0; b < s.scale_stride; b += 16) {
    const auto there = static_cast<__mmask16>(block.n_blocks - b >= 16 ? 0xffff : (1u << (block.n_blocks - b)) - 1);
    __m512 largest = _mm512_setzero_ps();
    for (int64_t key = 0; key < block.n_keys; ++key) {
      const uint8_t* halves = block.rows + key * block.row_bytes + at + 2 * b;
      const __m512 scale = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(there, halves));
      _mm512_storeu_ps(s.scales + key * s.scale_stride + b, scale);
      largest = _mm512_max_ps(largest, scale);
    }
    _mm512_storeu_ps(s.largest + b, largest);
  }
}

KIMI_INLINE void score_keys(const LatentBlockQ8& block, const Scratch& s) {
  for (int64_t key0 = 0; key0 < block.n_keys; key0 += kTile) {
    const uint8_t* rows[kTile];
    const float* scales[kTile];
    for (int t = 0; t < kTile; ++t) {
      const int64_t key = key0 + t < block.n_keys ? key0 + t : block.n_keys - 1;  // the last one again, for nobody
      rows[t] = block.rows + key * block.row_bytes;
      scales[t] = s.scales + key * s.scale_stride;
    }
    __m512 acc[kTile];
    for (int t = 0; t < kTile; ++t) acc[t] = _mm512_setzero_ps();
    for (int64_t b = 0; b < block.n_blocks; ++b) {
      const __m512i bias = _mm512_slli_epi32(_mm512_loadu_si512(block.q_sum + b * kLanes), 7);
      __m512i dot[kTile];
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t) dot[t] = _mm512_sub_epi32(_mm512_setzero_si512(), bias);
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        const __m512i q = _mm512_loadu_si512(block.q + (b * 8 + i) * kLanes * 4);
#pragma GCC unroll 8
        for (int t = 0; t < kTile; ++t) add_dot(dot[t], broadcast_four(rows[t] + b * 32 + 4 * i), q);
      }
      const __m512 q_scale = _mm512_loadu_ps(block.q_scale + b * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kTile; ++t)
        acc[t] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot[t]), q_scale), _mm512_set1_ps(scales[t][b]), acc[t]);
    }
    for (int t = 0; t < kTile; ++t) _mm512_storeu_ps(s.scores + (key0 + t) * kLanes, acc[t]);
  }
}

// Scores become weights; m and l move on. -> what the output so far is to be multiplied with; largest: of the weights.
KIMI_INLINE __m512 weigh(const LatentBlockQ8& block, const Scratch& s, __m512* largest) {
  const __m512 m_old = _mm512_loadu_ps(block.m);
  __m512 m = m_old;
  for (int64_t key = 0; key < block.n_keys; ++key) {
    __m512 score = _mm512_loadu_ps(s.scores + key * kLanes);
    if (block.last_key) {
      const __m512i position = _mm512_set1_epi32(static_cast<int32_t>(block.key0 + key));
      const __mmask16 seen = _mm512_cmple_epi32_mask(position, _mm512_loadu_si512(block.last_key));
      score = _mm512_mask_mov_ps(_mm512_set1_ps(kNever), seen, score);
      _mm512_storeu_ps(s.scores + key * kLanes, score);
    }
    m = _mm512_max_ps(m, score);
  }
  __m512 l = _mm512_setzero_ps();
  *largest = _mm512_setzero_ps();
  for (int64_t key = 0; key < block.n_keys; ++key) {
    const __m512 score = _mm512_loadu_ps(s.scores + key * kLanes);
    __m512 p = exp<16>(_mm512_sub_ps(score, m));
    if (block.last_key) p = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(score, _mm512_set1_ps(kNever), _CMP_GT_OQ), p);
    _mm512_storeu_ps(s.scores + key * kLanes, p);
    l = _mm512_add_ps(l, p);
    *largest = _mm512_max_ps(*largest, p);
  }
  const __mmask16 begun = _mm512_cmp_ps_mask(m_old, _mm512_set1_ps(kNever), _CMP_GT_OQ);
  const __m512 correction = _mm512_maskz_mov_ps(begun, exp<16>(_mm512_sub_ps(m_old, m)));
  _mm512_storeu_ps(block.l, _mm512_fmadd_ps(_mm512_loadu_ps(block.l), correction, l));
  _mm512_storeu_ps(block.m, m);
  return correction;
}

// Numbers [64 g, 64 g + 64) of the keys, four keys side by side: dword 16 j + 4 i + k of a quad is number 16 i + 4 j + k.
KIMI_INLINE void interleave(const LatentBlockQ8& block, int64_t g, int64_t n_quads, uint8_t* quads) {
  const __m512i bias = _mm512_set1_epi8(static_cast<char>(0x80));
  for (int64_t quad = 0; quad < n_quads; ++quad) {
    __m512i row[4];
    for (int t = 0; t < 4; ++t) {
      const int64_t key = quad * 4 + t < block.n_keys ? quad * 4 + t : block.n_keys - 1;  // beyond the last: weight 0
      row[t] = _mm512_xor_si512(_mm512_loadu_si512(block.rows + key * block.row_bytes + 64 * g), bias);
    }
    const __m512i low01 = _mm512_unpacklo_epi8(row[0], row[1]), high01 = _mm512_unpackhi_epi8(row[0], row[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(row[2], row[3]), high23 = _mm512_unpackhi_epi8(row[2], row[3]);
    uint8_t* to = quads + quad * 256;
    _mm512_storeu_si512(to, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(to + 64, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(to + 128, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(to + 192, _mm512_unpackhi_epi16(high01, high23));
  }
}

// Weights of one block of 32 numbers as bytes: [n_quads, lanes, 4].
KIMI_INLINE void quantize_weights(const Scratch& s, int64_t b, int64_t n_quads, uint8_t* out) {
  for (int64_t quad = 0; quad < n_quads; ++quad) {
    __m512i part[4];
    for (int t = 0; t < 4; ++t) {
      const __m512 weight = _mm512_loadu_ps(s.scores + (quad * 4 + t) * kLanes);
      part[t] = _mm512_cvtps_epi32(_mm512_mul_ps(weight, _mm512_set1_ps(s.scales[(quad * 4 + t) * s.scale_stride + b])));
    }
    const __m512i low = _mm512_or_si512(part[0], _mm512_slli_epi32(part[1], 8));
    const __m512i high = _mm512_or_si512(_mm512_slli_epi32(part[2], 16), _mm512_slli_epi32(part[3], 24));
    _mm512_storeu_si512(out + quad * 64, _mm512_or_si512(low, high));
  }
}

void latent_block_q8(const LatentBlockQ8& block) {
  const Scratch s(block.scratch, block.n_blocks);
  read_scales(block, s);
  score_keys(block, s);
  __m512 largest;
  const __m512 correction = weigh(block, s, &largest);

  // Weights in steps of 1 / 255 of the largest; scales as shares of the block's largest.
  const int64_t n_quads = (block.n_keys + 3) / 4;
  const __mmask16 some = _mm512_cmp_ps_mask(largest, _mm512_setzero_ps(), _CMP_GT_OQ);
  const __m512 steps = _mm512_maskz_div_ps(some, _mm512_set1_ps(255.0f), largest);
  for (int64_t key = 0; key < n_quads * 4; ++key) {
    float* weight = s.scores + key * kLanes;
    _mm512_storeu_ps(weight, key < block.n_keys ? _mm512_mul_ps(_mm512_loadu_ps(weight), steps) : _mm512_setzero_ps());
  }
  for (int64_t b = 0; b < s.scale_stride; b += 16) {
    const __m512 top = _mm512_loadu_ps(s.largest + b);
    const __m512 inverse =
        _mm512_maskz_div_ps(_mm512_cmp_ps_mask(top, _mm512_setzero_ps(), _CMP_GT_OQ), _mm512_set1_ps(1.0f), top);
    for (int64_t key = 0; key < block.n_keys; ++key) {
      float* scale = s.scales + key * s.scale_stride + b;
      _mm512_storeu_ps(scale, _mm512_mul_ps(_mm512_loadu_ps(scale), inverse));
    }
    for (int64_t key = block.n_keys; key < n_quads * 4; ++key)
      _mm512_storeu_ps(s.scales + key * s.scale_stride + b, _mm512_setzero_ps());
  }

  const uint8_t *ahead = block.ahead.first, *ahead_end = ahead + block.ahead.bytes;
  const int64_t share = (block.ahead.bytes + 64) / ((block.dv + 63) / 64 * 4 * n_quads) + 1;  // bytes a step
  int64_t fetched = 0;  // bytes that are due, less those asked for
  const __m512 step = _mm512_mul_ps(largest, _mm512_set1_ps(1.0f / 255.0f));
  for (int64_t g = 0; 64 * g < block.dv; ++g) {
    interleave(block, g, n_quads, s.quads);
    uint8_t* weights[2] = {s.weights, s.weights + kQuads * 64};
    __m512 scale[2];
    for (int half = 0; half < 2; ++half) {
      quantize_weights(s, 2 * g + half, n_quads, weights[half]);
      scale[half] = _mm512_mul_ps(step, _mm512_set1_ps(s.largest[2 * g + half]));
    }
    for (int j = 0; j < 4; ++j) {
      __m512i acc[16];
#pragma GCC unroll 16
      for (int x = 0; x < 16; ++x) acc[x] = _mm512_setzero_si512();
      for (int64_t quad = 0; quad < n_quads; ++quad) {
        const __m512i first = _mm512_loadu_si512(weights[0] + quad * 64), second = _mm512_loadu_si512(weights[1] + quad * 64);
        const uint8_t* values = s.quads + quad * 256 + 64 * j;
#pragma GCC unroll 16
        for (int x = 0; x < 16; ++x) add_dot_four(acc[x], x < 8 ? first : second, values + 4 * x);
        // Evenly, what comes next into the second-level cache, and what the next 64 numbers need into the first.
        for (fetched += share; ahead < ahead_end && fetched > 0; fetched -= 64, ahead += 64)
          _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
        _mm_prefetch(reinterpret_cast<const char*>(block.rows + (quad * 4 + j) * block.row_bytes + 64 * (g + 1) + 63),
                     _MM_HINT_T0);
      }
#pragma GCC unroll 16
      for (int x = 0; x < 16; ++x) {
        const int64_t d = 64 * g + 16 * (x / 4) + 4 * j + x % 4;
        if (d >= block.dv) continue;
        float* o = block.o_t + d * kLanes;
        _mm512_storeu_ps(
            o, _mm512_fmadd_ps(_mm512_loadu_ps(o), correction, _mm512_mul_ps(_mm512_cvtepi32_ps(acc[x]), scale[x / 8])));
      }
    }
  }
}

}  // namespace

void fill_latent_q8(KernelTable* table) { table->latent_block_q8 = latent_block_q8; }

}  // namespace kimi::cpu::avx512_vnni
