// gemm_panel_q8 of the avx512 table: 32 weight rows x up to 6 tokens in registers, vpdpbusd.
//
// A register of weights holds 4 elements of 16 rows; a token's 4 elements are broadcast against it. Weights are unsigned with a
// bias of 128, so the integer accumulators of a group begin at -128 * (sum of the token's elements). Of 32 registers, 12 are
// integer and 12 float accumulators. Per group of 32 and accumulator there are 8 vpdpbusd and, on the same two ports, a multiply
// and a fused multiply-add: 80 % of the peak is what this can reach (73 % with a minimum, 67 % with groups of 16).
//
// The reduction is cut into blocks whose weights stay in the first-level cache while all tokens pass; between blocks the sums
// rest in `out`. The chain of operations of one output (loops/int8.h) is the same for every tile.
#include "backend/cpu/avx512/int8.h"
#include "backend/cpu/avx512/intrinsics.h"
#include "backend/cpu/loops/ahead.h"
#include "base/f16.h"

namespace kimi::cpu::avx512 {
namespace {

constexpr int kTokens = 6;
constexpr int64_t kDepth = 512;  // elements of a block: 16 KiB of weights

// What a tile needs of its tokens, besides q, for one block: read as broadcasts from one base address.
struct alignas(64) TokenSide {
  int32_t bias[kTokens][kDepth / 16];  // -128 * sum of the group's elements
  float sum[kTokens][kDepth / 16];     // x_sum of the group
  float scale[kTokens][kDepth / 32];
};

// Sums of neighbours: 32 values -> 16.
KIMI_INLINE __m512i even_of(__m512i a, __m512i b) {
  const __m512i index = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  return _mm512_permutex2var_epi32(a, index, b);
}
KIMI_INLINE __m512i odd_of(__m512i a, __m512i b) {
  const __m512i index = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi32(a, index, b);
}

// One token's side: `n` groups of 32 from the given addresses on.
template <int group, bool has_min>
KIMI_INLINE void fill_side(const float* scale, const float* sum, const int32_t* isum, int64_t n, int t, TokenSide* side) {
  const __mmask16 mask = static_cast<__mmask16>((1u << n) - 1);
  const uint32_t halves = n == 16 ? 0xffffffffu : (1u << (2 * n)) - 1;
  const __mmask16 low = static_cast<__mmask16>(halves), high = static_cast<__mmask16>(halves >> 16);
  _mm512_store_ps(side->scale[t], _mm512_maskz_loadu_ps(mask, scale));
  const __m512i isum0 = _mm512_maskz_loadu_epi32(low, isum), isum1 = high ? _mm512_maskz_loadu_epi32(high, isum + 16) : __m512i{};
  const __m512i zero = _mm512_setzero_si512();
  if constexpr (group == 32) {
    const __m512i pairs = _mm512_add_epi32(even_of(isum0, isum1), odd_of(isum0, isum1));
    _mm512_store_si512(side->bias[t], _mm512_sub_epi32(zero, _mm512_slli_epi32(pairs, 7)));
  } else {
    _mm512_store_si512(side->bias[t], _mm512_sub_epi32(zero, _mm512_slli_epi32(isum0, 7)));
    _mm512_store_si512(side->bias[t] + 16, _mm512_sub_epi32(zero, _mm512_slli_epi32(isum1, 7)));
  }
  if constexpr (has_min) {
    const __m512 sum0 = _mm512_maskz_loadu_ps(low, sum), sum1 = high ? _mm512_maskz_loadu_ps(high, sum + 16) : __m512{};
    if constexpr (group == 32) {
      const __m512 even = _mm512_castsi512_ps(even_of(_mm512_castps_si512(sum0), _mm512_castps_si512(sum1)));
      const __m512 odd = _mm512_castsi512_ps(odd_of(_mm512_castps_si512(sum0), _mm512_castps_si512(sum1)));
      _mm512_store_ps(side->sum[t], _mm512_add_ps(even, odd));
    } else {
      _mm512_store_ps(side->sum[t], sum0);
      _mm512_store_ps(side->sum[t] + 16, sum1);
    }
  }
}

// T tokens x 32 rows over n_groups groups. q, scale, min: where the block begins in the panel; x_q: in the tokens' rows.
template <int T, int group, bool has_min>
KIMI_INLINE void tile(const uint8_t* q, const float* scale, const float* min, int64_t n_groups, const int8_t* const* x_q,
                      const TokenSide& side, bool first_block, float* const* out) {
  __m512 acc[T][2];
  for (int t = 0; t < T; ++t) {
    acc[t][0] = first_block ? _mm512_setzero_ps() : _mm512_loadu_ps(out[t]);
    acc[t][1] = first_block ? _mm512_setzero_ps() : _mm512_loadu_ps(out[t] + 16);
  }
  for (int64_t g = 0; g < n_groups; ++g) {
    __m512i dot[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dot[t][0] = dot[t][1] = _mm512_set1_epi32(side.bias[t][g]);
#pragma GCC unroll 8
    for (int i = 0; i < group / 4; ++i) {
      const __m512i w0 = _mm512_loadu_si512(q + i * kPanelLanes * 4), w1 = _mm512_loadu_si512(q + i * kPanelLanes * 4 + 64);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x_q[t] + g * group + 4 * i, 4);
        const __m512i xs = _mm512_set1_epi32(four);
        dot[t][0] = _mm512_dpbusd_epi32(dot[t][0], w0, xs);
        dot[t][1] = _mm512_dpbusd_epi32(dot[t][1], w1, xs);
      }
    }
    q += group * kPanelLanes;
    const __m512 scale0 = _mm512_loadu_ps(scale), scale1 = _mm512_loadu_ps(scale + 16);
    scale += kPanelLanes;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const __m512 x_scale = _mm512_set1_ps(side.scale[t][group == 32 ? g : g / 2]);
      acc[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][0]), _mm512_mul_ps(scale0, x_scale), acc[t][0]);
      acc[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][1]), _mm512_mul_ps(scale1, x_scale), acc[t][1]);
    }
    if constexpr (has_min) {
      const __m512 min0 = _mm512_loadu_ps(min), min1 = _mm512_loadu_ps(min + 16);
      min += kPanelLanes;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 x_sum = _mm512_set1_ps(side.sum[t][g]);
        acc[t][0] = _mm512_fnmadd_ps(min0, x_sum, acc[t][0]);
        acc[t][1] = _mm512_fnmadd_ps(min1, x_sum, acc[t][1]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    _mm512_storeu_ps(out[t], acc[t][0]);
    _mm512_storeu_ps(out[t] + 16, acc[t][1]);
  }
}

template <int T, int group, bool has_min>
__attribute__((noinline)) void tile_of(const PanelQ8& panel, const Q8Rows& x, const int64_t* rows, int64_t k0, int64_t depth,
                                       float* const* out) {
  TokenSide side;
  const int8_t* x_q[T];
  for (int t = 0; t < T; ++t) {
    const int64_t row = rows[t];
    x_q[t] = x.q + row * x.k + k0;
    fill_side<group, has_min>(x.scale + (row * x.k + k0) / 32, x.sum + (row * x.k + k0) / 16, x.isum + (row * x.k + k0) / 16,
                              depth / 32, t, &side);
  }
  const int64_t g0 = k0 / group * kPanelLanes;
  tile<T, group, has_min>(panel.q + k0 * kPanelLanes, panel.scale + g0, has_min ? panel.min + g0 : nullptr, depth / group, x_q,
                          side, k0 == 0, out);
}

template <int group, bool has_min>
void gemm(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  const int64_t n_tiles = (n_x + kTokens - 1) / kTokens;
  loops::Fetching fetching = loops::Fetching::over(panel.ahead, n_tiles * ((panel.k + kDepth - 1) / kDepth));
  for (int64_t k0 = 0; k0 < panel.k; k0 += kDepth) {
    const int64_t depth = panel.k - k0 < kDepth ? panel.k - k0 : kDepth;
    int64_t j = 0;
    for (int64_t i = 0; i < n_tiles; ++i) {
      const int64_t n = (n_x - j + n_tiles - i - 1) / (n_tiles - i);  // tiles of nearly the same size: 7 is 4 + 3, not 6 + 1
      int64_t row[kTokens];
      float* to[kTokens];
      for (int64_t t = 0; t < n; ++t) {
        row[t] = rows ? rows[j + t] : j + t;
        to[t] = out + (j + t) * out_stride;
      }
      fetching.step();
      switch (n) {
        case 1:
          tile_of<1, group, has_min>(panel, x, row, k0, depth, to);
          break;
        case 2:
          tile_of<2, group, has_min>(panel, x, row, k0, depth, to);
          break;
        case 3:
          tile_of<3, group, has_min>(panel, x, row, k0, depth, to);
          break;
        case 4:
          tile_of<4, group, has_min>(panel, x, row, k0, depth, to);
          break;
        case 5:
          tile_of<5, group, has_min>(panel, x, row, k0, depth, to);
          break;
        default:
          tile_of<6, group, has_min>(panel, x, row, k0, depth, to);
          break;
      }
      j += n;
    }
  }
}

}  // namespace

void gemm_panel_q8(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  if (panel.group == 16) {
    if (panel.has_min) {
      gemm<16, true>(panel, x, rows, n_x, out, out_stride);
    } else {
      gemm<16, false>(panel, x, rows, n_x, out, out_stride);
    }
  } else if (panel.has_min) {
    gemm<32, true>(panel, x, rows, n_x, out, out_stride);
  } else {
    gemm<32, false>(panel, x, rows, n_x, out, out_stride);
  }
}

}  // namespace kimi::cpu::avx512
