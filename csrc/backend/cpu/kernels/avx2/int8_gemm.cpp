// gemm_panel_q8 of the avx2 table: 16 weight rows x up to 4 tokens in registers.
//
// Weights of few bits: vpmaddubsw adds two products in 16 bits, and as many of these sums as cannot overflow are added up before
// vpmaddwd widens them: 8 for weights below 16, 4 below 32, 2 below 64. 8-bit weights would saturate, so both sides are widened
// to 16: the bytes 0, 2 and 1, 3 of the four weights in a lane are split by a mask and a shift, those of the activations once per
// token and block, and vpmaddwd multiplies them exactly. The accumulators of a group begin at -bias * (sum of the token's
// elements). The 8 float accumulators rest in memory between groups.
//
// The reduction is cut into blocks whose weights stay in the first-level cache while all tokens pass; between blocks the sums
// rest in `out`. The chain of operations of one output (loops/int8.h) is the same for every tile.
#include <immintrin.h>

#include "backend/cpu/kernels/avx2/int8.h"
#include "backend/cpu/kernels/loops/ahead.h"
#include "base/f16.h"

namespace kimi::cpu::avx2 {
namespace {

constexpr int kTokens = 4;
constexpr int kRows = 16;        // rows of a tile; a panel is two of them
constexpr int64_t kDepth = 512;  // elements of a block: 16 KiB of weights

// The tokens of a tile for one block: read as broadcasts from one base address.
struct alignas(64) TokenBlock {
  uint32_t fours[kTokens][kDepth / 4];  // the elements, or 0 and 2 of each four as two int16
  uint32_t odd[kTokens][kDepth / 4];    // elements 1 and 3 of each four; weights of 8 bits only
  int32_t bias[kTokens][kDepth / 16];   // -bias * sum of the group's elements
  float sum[kTokens][kDepth / 16];      // x_sum of the group
  float scale[kTokens][kDepth / 32];
};

// How many sums of two products of weights up to max_q fit 16 bits, of those that `gemm` is made for; 0: none for certain.
int sums_in_16_bits(int32_t max_q) {
  const int32_t n = 32767 / (2 * 127 * max_q);
  return n >= 8 ? 8 : n >= 4 ? 4 : n >= 2 ? 2 : 0;
}

template <int group, bool has_min, int kSums>
KIMI_INLINE void fill_token(const Q8Rows& x, int64_t row, int64_t k0, int64_t depth, int t, int32_t bias, TokenBlock* block) {
  const Q8Block* from = x.blocks + (row * x.k + k0) / 32;
  for (int64_t i = 0; i < depth / 32; ++i) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from[i].q));
    auto* fours = reinterpret_cast<__m256i*>(block->fours[t] + 8 * i);
    if constexpr (kSums > 0) {
      _mm256_store_si256(fours, bytes);
    } else {
      _mm256_store_si256(fours, _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8));
      _mm256_store_si256(reinterpret_cast<__m256i*>(block->odd[t] + 8 * i), _mm256_srai_epi16(bytes, 8));
    }
    block->scale[t][i] = from[i].scale;
    if constexpr (group == 32) {
      block->bias[t][i] = -bias * from[i].isum;
      if (has_min) block->sum[t][i] = from[i].sum;
    } else {
      for (int half = 0; half < 2; ++half) {
        block->bias[t][2 * i + half] = -bias * from[i].half_isum[half];
        if (has_min) block->sum[t][2 * i + half] = from[i].half_sum[half];
      }
    }
  }
}

// sum += a * b, pairwise. The empty statement keeps the compiler from summing products as a tree, which needs more registers than
// there are.
KIMI_INLINE void add_products(__m256i* sum, __m256i a, __m256i b) {
  *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(a, b));
  asm("" : "+x"(*sum));
}

KIMI_INLINE __m256i load_weights(const uint8_t* q) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)); }
KIMI_INLINE __m256i broadcast(uint32_t four) { return _mm256_set1_epi32(static_cast<int>(four)); }

// dot[t] += the products of one group. x: the tokens' elements of the group begin at dword `at`.
template <int T, int group, int kSums>
KIMI_INLINE void dot_group(const uint8_t* q, const TokenBlock& x, int64_t at, __m256i (*dot)[2]) {
  if constexpr (kSums > 0) {
    constexpr int kStep = kSums < group / 4 ? kSums : group / 4;
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int i0 = 0; i0 < group / 4; i0 += kStep) {
      __m256i sum[T][2];
#pragma GCC unroll 8
      for (int i = 0; i < kStep; ++i) {
        const __m256i w0 = load_weights(q + (i0 + i) * kPanelLanes * 4), w1 = load_weights(q + (i0 + i) * kPanelLanes * 4 + 32);
#pragma GCC unroll 4
        for (int t = 0; t < T; ++t) {
          const __m256i four = broadcast(x.fours[t][at + i0 + i]);
          const __m256i product0 = _mm256_maddubs_epi16(w0, four), product1 = _mm256_maddubs_epi16(w1, four);
          sum[t][0] = i ? _mm256_add_epi16(sum[t][0], product0) : product0;
          sum[t][1] = i ? _mm256_add_epi16(sum[t][1], product1) : product1;
          asm("" : "+x"(sum[t][0]), "+x"(sum[t][1]));  // in this order, as in add_products
        }
      }
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        add_products(&dot[t][0], sum[t][0], ones);
        add_products(&dot[t][1], sum[t][1], ones);
      }
    }
  } else {
    const __m256i low_bytes = _mm256_set1_epi16(255);
#pragma GCC unroll 8
    for (int i = 0; i < group / 4; ++i) {
      const __m256i w0 = load_weights(q + i * kPanelLanes * 4), w1 = load_weights(q + i * kPanelLanes * 4 + 32);
      const __m256i even0 = _mm256_and_si256(w0, low_bytes), odd0 = _mm256_srli_epi16(w0, 8);
      const __m256i even1 = _mm256_and_si256(w1, low_bytes), odd1 = _mm256_srli_epi16(w1, 8);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) {
        const __m256i even = broadcast(x.fours[t][at + i]), odd = broadcast(x.odd[t][at + i]);
        add_products(&dot[t][0], even0, even);
        add_products(&dot[t][1], even1, even);
        add_products(&dot[t][0], odd0, odd);
        add_products(&dot[t][1], odd1, odd);
      }
    }
  }
}

// T tokens x 16 rows over n_groups groups. q, scale, min: where the block and the tile's rows begin in the panel.
template <int T, int group, bool has_min, int kSums>
KIMI_INLINE void tile(const uint8_t* q, const float* scale, const float* min, int64_t n_groups, const TokenBlock& x,
                      float (*acc)[kRows]) {
  for (int64_t g = 0; g < n_groups; ++g) {
    __m256i dot[T][2];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) dot[t][0] = dot[t][1] = _mm256_set1_epi32(x.bias[t][g]);
    dot_group<T, group, kSums>(q, x, g * (group / 4), dot);
    q += group * kPanelLanes;
    const __m256 scale0 = _mm256_loadu_ps(scale), scale1 = _mm256_loadu_ps(scale + 8);
    scale += kPanelLanes;
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m256 x_scale = _mm256_set1_ps(x.scale[t][group == 32 ? g : g / 2]);
      __m256 acc0 = _mm256_load_ps(acc[t]), acc1 = _mm256_load_ps(acc[t] + 8);
      acc0 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][0]), _mm256_mul_ps(scale0, x_scale), acc0);
      acc1 = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[t][1]), _mm256_mul_ps(scale1, x_scale), acc1);
      if constexpr (has_min) {
        const __m256 x_sum = _mm256_set1_ps(x.sum[t][g]);
        acc0 = _mm256_fnmadd_ps(_mm256_loadu_ps(min), x_sum, acc0);
        acc1 = _mm256_fnmadd_ps(_mm256_loadu_ps(min + 8), x_sum, acc1);
      }
      _mm256_store_ps(acc[t], acc0);
      _mm256_store_ps(acc[t] + 8, acc1);
    }
    if constexpr (has_min) min += kPanelLanes;
  }
}

template <int T, int group, bool has_min, int kSums>
__attribute__((noinline)) void tile_of(const PanelQ8& panel, const Q8Rows& x, const int64_t* rows, int64_t k0, int64_t depth,
                                       float* out, int64_t out_stride) {
  TokenBlock block;
  for (int t = 0; t < T; ++t) fill_token<group, has_min, kSums>(x, rows[t], k0, depth, t, panel.bias, &block);
  for (int first = 0; first < kPanelLanes; first += kRows) {
    alignas(32) float acc[T][kRows];
    for (int t = 0; t < T; ++t) {
      for (int i = 0; i < kRows; ++i) acc[t][i] = k0 == 0 ? 0.0f : out[t * out_stride + first + i];
    }
    const int64_t g0 = k0 / group * kPanelLanes + first;
    tile<T, group, has_min, kSums>(panel.q + k0 * kPanelLanes + 4 * first, panel.scale + g0, has_min ? panel.min + g0 : nullptr,
                                   depth / group, block, acc);
    for (int t = 0; t < T; ++t) {
      for (int i = 0; i < kRows; ++i) out[t * out_stride + first + i] = acc[t][i];
    }
  }
}

template <int group, bool has_min, int kSums>
void gemm(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  const int64_t n_tiles = (n_x + kTokens - 1) / kTokens;
  loops::Fetching fetching = loops::Fetching::over(panel.ahead, n_tiles * ((panel.k + kDepth - 1) / kDepth));
  for (int64_t k0 = 0; k0 < panel.k; k0 += kDepth) {
    const int64_t depth = panel.k - k0 < kDepth ? panel.k - k0 : kDepth;
    for (int64_t j = 0; j < n_x; j += kTokens) {
      const int64_t n = n_x - j < kTokens ? n_x - j : kTokens;
      int64_t row[kTokens];
      for (int64_t t = 0; t < n; ++t) row[t] = rows ? rows[j + t] : j + t;
      float* to = out + j * out_stride;
      fetching.step();
      switch (n) {
        case 1:
          tile_of<1, group, has_min, kSums>(panel, x, row, k0, depth, to, out_stride);
          break;
        case 2:
          tile_of<2, group, has_min, kSums>(panel, x, row, k0, depth, to, out_stride);
          break;
        case 3:
          tile_of<3, group, has_min, kSums>(panel, x, row, k0, depth, to, out_stride);
          break;
        default:
          tile_of<4, group, has_min, kSums>(panel, x, row, k0, depth, to, out_stride);
          break;
      }
    }
  }
}

template <int group, bool has_min>
void gemm_of(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  switch (sums_in_16_bits(panel.max_q)) {
    case 8:
      return gemm<group, has_min, 8>(panel, x, rows, n_x, out, out_stride);
    case 4:
      return gemm<group, has_min, 4>(panel, x, rows, n_x, out, out_stride);
    case 2:
      return gemm<group, has_min, 2>(panel, x, rows, n_x, out, out_stride);
    default:
      return gemm<group, has_min, 0>(panel, x, rows, n_x, out, out_stride);
  }
}

}  // namespace

void gemm_panel_q8(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  if (panel.group == 16) {
    if (panel.has_min) {
      gemm_of<16, true>(panel, x, rows, n_x, out, out_stride);
    } else {
      gemm_of<16, false>(panel, x, rows, n_x, out, out_stride);
    }
  } else if (panel.has_min) {
    gemm_of<32, true>(panel, x, rows, n_x, out, out_stride);
  } else {
    gemm_of<32, false>(panel, x, rows, n_x, out, out_stride);
  }
}

}  // namespace kimi::cpu::avx2
