// gemm_panel_q8 of the avx512 table: 32 weight rows x up to 6 tokens in registers, vpdpbusd.
//
// A register of weights holds 4 elements of 16 rows; a token's 4 elements are broadcast against it. Weights without a minimum are
// unsigned with a bias of 128, so the integer accumulators of a group begin at -128 * (sum of the token's elements). Of 32
// registers, 12 are integer and 12 float accumulators. Per group of 32 and accumulator there are 8 vpdpbusd and, on the same two
// ports, a multiply and a fused multiply-add: 80 % of the peak is what this can reach (73 % with a minimum, 67 % with groups of
// 16). Conversions, additions and shifts have ports of their own, but everything passes the decoder: a token is one pointer.
//
// The reduction is cut into blocks that all tokens pass before the next one begins, so that their weights are near; between
// blocks the sums rest in `out`. The chain of operations of one output (loops/int8.h) is the same for every tile.
#include "backend/cpu/kernels/avx512/intrinsics.h"
#include "backend/cpu/kernels/avx512/parts.h"
#include "backend/cpu/kernels/loops/ahead.h"
#include "base/f16.h"

namespace kimi::cpu::avx512 {
namespace {

constexpr int kTokens = 6;
constexpr int64_t kDepth =
    2048;  // elements of a block: shorter ones stay in the first-level cache, but starting a tile costs more

// Where sums of products of a group of a token begin.
template <int group, bool has_min>
KIMI_INLINE __m512i begin_dot(const Q8Block& x, int half) {
  if constexpr (has_min) return _mm512_setzero_si512();
  return _mm512_sub_epi32(_mm512_setzero_si512(),
                          _mm512_slli_epi32(_mm512_set1_epi32(group == 16 ? x.half_isum[half] : x.isum), 7));
}

// T tokens x 32 rows over n_groups groups. q, scale, min: where the block begins in the panel; x: in the tokens' rows.
template <int T, int group, bool has_min>
KIMI_INLINE void tile(const uint8_t* q, const float* scale, const float* min, int64_t n_groups, const Q8Block* const* x,
                      bool first_block, float* const* out, loops::Fetching& fetching) {
  __m512 acc[T][2];
  for (int t = 0; t < T; ++t) {
    acc[t][0] = first_block ? _mm512_setzero_ps() : _mm512_loadu_ps(out[t]);
    acc[t][1] = first_block ? _mm512_setzero_ps() : _mm512_loadu_ps(out[t] + 16);
  }
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t block = g * group / 32, half = group == 16 ? g % 2 : 0;
    fetching.step();
    __m512i dot[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) dot[t][0] = dot[t][1] = begin_dot<group, has_min>(x[t][block], static_cast<int>(half));
#pragma GCC unroll 8
    for (int i = 0; i < group / 4; ++i) {
      const __m512i w0 = _mm512_loadu_si512(q + i * kPanelLanes * 4), w1 = _mm512_loadu_si512(q + i * kPanelLanes * 4 + 64);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        int32_t four;
        __builtin_memcpy(&four, x[t][block].q + half * 16 + 4 * i, 4);
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
      const __m512 xs = _mm512_set1_ps(x[t][block].scale);
      acc[t][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][0]), _mm512_mul_ps(scale0, xs), acc[t][0]);
      acc[t][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[t][1]), _mm512_mul_ps(scale1, xs), acc[t][1]);
    }
    if constexpr (has_min) {
      const __m512 min0 = _mm512_loadu_ps(min), min1 = _mm512_loadu_ps(min + 16);
      min += kPanelLanes;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const __m512 sum = _mm512_set1_ps(group == 32 ? x[t][block].sum : x[t][block].half_sum[half]);
        acc[t][0] = _mm512_fnmadd_ps(min0, sum, acc[t][0]);
        acc[t][1] = _mm512_fnmadd_ps(min1, sum, acc[t][1]);
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
                                       float* const* out, loops::Fetching* fetching) {
  const Q8Block* from[T];
  for (int t = 0; t < T; ++t) from[t] = x.blocks + (rows[t] * x.k + k0) / 32;
  const int64_t g0 = k0 / group * kPanelLanes;
  loops::Fetching now = *fetching;
  tile<T, group, has_min>(panel.q + k0 * kPanelLanes, panel.scale + g0, has_min ? panel.min + g0 : nullptr, depth / group, from,
                          k0 == 0, out, now);
  *fetching = now;
}

template <int group, bool has_min>
void gemm(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  const int64_t n_tiles = (n_x + kTokens - 1) / kTokens;
  loops::Fetching fetching = loops::Fetching::over(panel.ahead, n_tiles * (panel.k / group));
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
      switch (n) {
        case 1:
          tile_of<1, group, has_min>(panel, x, row, k0, depth, to, &fetching);
          break;
        case 2:
          tile_of<2, group, has_min>(panel, x, row, k0, depth, to, &fetching);
          break;
        case 3:
          tile_of<3, group, has_min>(panel, x, row, k0, depth, to, &fetching);
          break;
        case 4:
          tile_of<4, group, has_min>(panel, x, row, k0, depth, to, &fetching);
          break;
        case 5:
          tile_of<5, group, has_min>(panel, x, row, k0, depth, to, &fetching);
          break;
        default:
          tile_of<6, group, has_min>(panel, x, row, k0, depth, to, &fetching);
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
