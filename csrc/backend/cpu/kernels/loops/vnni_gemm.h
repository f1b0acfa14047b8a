// gemm_panel_q8 of kernel_table.h with an instruction that adds four products of bytes (vpdpbusd): 2 vectors of weight rows x up
// to V::kTokens tokens in registers.
//
// A vector of weights holds 4 elements of kWidth rows; a token's 4 elements are broadcast against it. Weights without a minimum
// are unsigned with the panel's bias, so the integer accumulators of a group begin at -bias * (sum of the token's elements).
// Everything passes the decoder: a token is one pointer.
//
// The reduction is cut into blocks that all tokens pass before the next one begins, so that their weights are near; between
// blocks the sums rest in `out`. The chain of operations of one output (loops/int8.h) is the same for every tile.
//
// V, the vectors of an instruction set, is given by its folder (int8_gemm.cpp): U is a vector of kWidth dwords, F of kWidth
// floats; kDepth: elements of a block; kSumsInRegisters: there are enough for the float sums beside the integer ones, else they
// rest in `out` between groups as well.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/ahead.h"
#include "base/f16.h"

namespace kimi::cpu::loops {

constexpr int kVnniPanelLanes = 32;

// T tokens x 2 vectors of rows over n_groups groups. q, scale, min: where the block and the tile's rows begin in the panel; x: in
// the tokens' rows.
template <class V, int T, int group, bool has_min>
KIMI_INLINE void vnni_tile(const uint8_t* q, const float* scale, const float* min, int64_t n_groups, const Q8Block* const* x,
                           int32_t bias, bool first_block, float* const* out, Fetching& fetching) {
  constexpr int W = V::kWidth;
  // Sums of 32 elements fit 16 bits, so one instruction multiplies them.
  const typename V::U minus_bias = V::splat(static_cast<uint16_t>(-bias));
  typename V::F acc[T][2];
  const auto load_sums = [&] {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      acc[t][0] = V::load_floats(out[t]);
      acc[t][1] = V::load_floats(out[t] + W);
    }
  };
  const auto store_sums = [&] {
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      V::store_floats(out[t], acc[t][0]);
      V::store_floats(out[t] + W, acc[t][1]);
    }
  };
  if (first_block) {
    for (int t = 0; t < T; ++t) acc[t][0] = acc[t][1] = V::zero();
    if constexpr (!V::kSumsInRegisters) store_sums();
  } else if constexpr (V::kSumsInRegisters) {
    load_sums();
  }
  for (int64_t g = 0; g < n_groups; ++g) {
    const int64_t block = g * group / 32, half = group == 16 ? g % 2 : 0;
    fetching.step();
    typename V::U dot[T][2];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Q8Block& from = x[t][block];
      dot[t][0] = has_min ? V::zeros()
                          : V::multiply_low_halves(V::broadcast(group == 16 ? &from.half_isum[half] : &from.isum), minus_bias);
      dot[t][1] = dot[t][0];
    }
#pragma GCC unroll 8
    for (int i = 0; i < group / 4; ++i) {
      const typename V::U w0 = V::load(q + i * kVnniPanelLanes * 4), w1 = V::load(q + i * kVnniPanelLanes * 4 + 4 * W);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const typename V::U xs = V::broadcast(x[t][block].q + half * 16 + 4 * i);
        V::add_dot(dot[t][0], w0, xs);
        V::add_dot(dot[t][1], w1, xs);
      }
    }
    q += group * kVnniPanelLanes;
    if constexpr (!V::kSumsInRegisters) load_sums();
    const typename V::F scale0 = V::load_floats(scale), scale1 = V::load_floats(scale + W);
    scale += kVnniPanelLanes;
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const typename V::F xs = V::splat_float(x[t][block].scale);
      acc[t][0] = V::multiply_add(V::to_float(dot[t][0]), V::multiply(scale0, xs), acc[t][0]);
      acc[t][1] = V::multiply_add(V::to_float(dot[t][1]), V::multiply(scale1, xs), acc[t][1]);
    }
    if constexpr (has_min) {
      const typename V::F min0 = V::load_floats(min), min1 = V::load_floats(min + W);
      min += kVnniPanelLanes;
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) {
        const typename V::F sum = V::splat_float(group == 32 ? x[t][block].sum : x[t][block].half_sum[half]);
        acc[t][0] = V::subtract_product(min0, sum, acc[t][0]);
        acc[t][1] = V::subtract_product(min1, sum, acc[t][1]);
      }
    }
    if constexpr (!V::kSumsInRegisters) store_sums();
  }
  if constexpr (V::kSumsInRegisters) store_sums();
}

template <class V, int T, int group, bool has_min>
__attribute__((noinline)) static void vnni_tile_of(const PanelQ8& panel, const Q8Rows& x, const int64_t* rows, int64_t k0,
                                                   int64_t depth, float* const* out, Fetching* fetching) {
  const Q8Block* from[T];
  for (int t = 0; t < T; ++t) from[t] = x.blocks + (rows[t] * x.k + k0) / 32;
  Fetching now = *fetching;
  for (int first = 0; first < kVnniPanelLanes; first += 2 * V::kWidth) {
    const int64_t g0 = k0 / group * kVnniPanelLanes + first;
    float* to[T];
    for (int t = 0; t < T; ++t) to[t] = out[t] + first;
    vnni_tile<V, T, group, has_min>(panel.q + k0 * kVnniPanelLanes + 4 * first, panel.scale + g0,
                                    has_min ? panel.min + g0 : nullptr, depth / group, from, panel.bias, k0 == 0, to, now);
  }
  *fetching = now;
}

// The tile of n tokens, n <= T.
template <class V, int T, int group, bool has_min>
KIMI_INLINE void vnni_tile_of_n(int64_t n, const PanelQ8& panel, const Q8Rows& x, const int64_t* rows, int64_t k0, int64_t depth,
                                float* const* out, Fetching* fetching) {
  if (n == T) return vnni_tile_of<V, T, group, has_min>(panel, x, rows, k0, depth, out, fetching);
  if constexpr (T > 1) vnni_tile_of_n<V, T - 1, group, has_min>(n, panel, x, rows, k0, depth, out, fetching);
}

template <class V, int group, bool has_min>
void vnni_gemm_of(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  const int64_t n_tiles = (n_x + V::kTokens - 1) / V::kTokens;
  const int64_t n_passes = kVnniPanelLanes / (2 * V::kWidth);
  Fetching fetching = Fetching::over(panel.ahead, n_passes * n_tiles * (panel.k / group));
  for (int64_t k0 = 0; k0 < panel.k; k0 += V::kDepth) {
    const int64_t depth = panel.k - k0 < V::kDepth ? panel.k - k0 : V::kDepth;
    int64_t j = 0;
    for (int64_t i = 0; i < n_tiles; ++i) {
      const int64_t n = (n_x - j + n_tiles - i - 1) / (n_tiles - i);  // tiles of nearly the same size: 7 is 4 + 3, not 6 + 1
      int64_t row[V::kTokens];
      float* to[V::kTokens];
      for (int64_t t = 0; t < n; ++t) {
        row[t] = rows ? rows[j + t] : j + t;
        to[t] = out + (j + t) * out_stride;
      }
      vnni_tile_of_n<V, V::kTokens, group, has_min>(n, panel, x, row, k0, depth, to, &fetching);
      j += n;
    }
  }
}

template <class V>
void vnni_gemm(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  if (panel.group == 16) {
    if (panel.has_min) {
      vnni_gemm_of<V, 16, true>(panel, x, rows, n_x, out, out_stride);
    } else {
      vnni_gemm_of<V, 16, false>(panel, x, rows, n_x, out, out_stride);
    }
  } else if (panel.has_min) {
    vnni_gemm_of<V, 32, true>(panel, x, rows, n_x, out, out_stride);
  } else {
    vnni_gemm_of<V, 32, false>(panel, x, rows, n_x, out, out_stride);
  }
}

}  // namespace kimi::cpu::loops
