// int8 arithmetic for any instruction set: what quantize_row, gemv_q8, pack_panel_q8 and gemm_panel_q8 of kernel_table.h
// mean, as loops of no particular width. generic/ is made of them; other instruction sets take what they do not replace.
//
// Included into code compiled with per-ISA flags: only static always_inline functions, no std headers.
//
// The arithmetic: an integer dot per group (exact), then
//   acc += float(dot) * (w_scale * x_scale)      and, for formats with a minimum,      acc -= w_min * x_sum
// in the order of the groups, by `add_group` alone. It is the same chain of operations for an output element wherever the
// element lies in the call, which is what makes results independent of the number of rows and columns.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "quant/blocks.h"

namespace kimi::cpu::loops {

// Explicit about fusing: left to the compiler, a vectorized loop and its tail might differ.
KIMI_INLINE float multiply_add(float a, float b, float c) {
#ifdef __FMA__
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

template <bool has_min>
KIMI_INLINE float add_group(float acc, int32_t dot, float w_scale, float x_scale, float w_min, float x_sum) {
  acc = multiply_add(static_cast<float>(dot), w_scale * x_scale, acc);
  return has_min ? multiply_add(-w_min, x_sum, acc) : acc;
}

// Of group g of a row: its elements, and its sum as a value.
template <int group>
KIMI_INLINE const int8_t* group_q(const Q8Block* x, int64_t g) {
  return group == 16 ? x[g / 2].q + g % 2 * 16 : x[g].q;
}
template <int group>
KIMI_INLINE float group_sum(const Q8Block* x, int64_t g) {
  return group == 16 ? x[g / 2].half_sum[g % 2] : x[g].sum;
}

// One group of int8 products in 16-bit pieces, which is what baseline x86 and Arm multiply best.
template <int group>
KIMI_INLINE int32_t dot_group(const int16_t* w, const int8_t* x) {
  int32_t sum = 0;
#pragma GCC unroll 1
  for (int i = 0; i < group; ++i) sum += static_cast<int32_t>(w[i]) * static_cast<int32_t>(x[i]);
  return sum;
}

// What follows from the largest magnitude of a block and the sums of its halves.
KIMI_INLINE void finish_block(float amax, int32_t half0, int32_t half1, Q8Block* out) {
  const float scale = amax / 127.0f;
  out->scale = scale;
  out->sum = scale * static_cast<float>(half0 + half1);
  out->half_sum[0] = scale * static_cast<float>(half0);
  out->half_sum[1] = scale * static_cast<float>(half1);
  out->isum = half0 + half1;
  out->half_isum[0] = half0;
  out->half_isum[1] = half1;
  out->unused = 0;
}

// x [k] -> blocks of 32. Bits are the same on every instruction set.
//   q = clamp(round_to_nearest_even(x * (127 / amax)), -127, 127), scale = amax / 127
// Adding 1.5 * 2^23 rounds and leaves the integer in the low bits; what is left to do is done on integers, which saturate at
// infinities. A NaN or an infinity among 32 elements makes their scale NaN or infinite and its own q 0: the result shows it.
KIMI_INLINE void quantize_row(const float* x, int64_t k, Q8Block* out) {
  constexpr int32_t kRoundBits = 0x4b400000;  // 1.5 * 2^23
  const float round = f32_from_bits(kRoundBits);
  for (int64_t g = 0; g < k / 32; ++g) {
    int32_t amax_bits = 0;  // magnitudes compare like their bits, NaN above infinity
    for (int i = 0; i < 32; ++i) {
      const int32_t bits = static_cast<int32_t>(f32_to_bits(x[32 * g + i]) & 0x7fffffff);
      amax_bits = bits > amax_bits ? bits : amax_bits;
    }
    const float amax = f32_from_bits(static_cast<uint32_t>(amax_bits));
    const float inverse = amax_bits != 0 ? 127.0f / amax : 0.0f;
    int32_t rounded[32];
    for (int i = 0; i < 32; ++i) {
      const float v = x[32 * g + i] * inverse;
      int32_t integer = static_cast<int32_t>(f32_to_bits(v + round)) - kRoundBits;
      integer = integer > 127 ? 127 : integer;
      integer = integer < -127 ? -127 : integer;
      const int32_t is_number = -static_cast<int32_t>(static_cast<int32_t>(f32_to_bits(v) & 0x7fffffff) <= 0x7f800000);
      rounded[i] = integer & is_number;
    }
    int32_t half_isum[2] = {};
    for (int i = 0; i < 32; ++i) {
      out[g].q[i] = static_cast<int8_t>(rounded[i]);
      half_isum[i / 16] += rounded[i];
    }
    finish_block(amax, half_isum[0], half_isum[1], out + g);
  }
}

// Weight rows are unpacked block by block, each used for up to kGemvColumns activation rows.
constexpr int64_t kGemvColumns = 8;

template <quant::Type type>
KIMI_INLINE void gemv(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out,
                      int64_t out_stride) {
  using Traits = quant::BlockTraits<type>;
  using Block = typename Traits::Block;
  const int64_t n_blocks = x.k / Traits::elems;
  for (int64_t r = 0; r < n_rows; ++r) {
    const auto* blocks = reinterpret_cast<const Block*>(static_cast<const uint8_t*>(w) + r * row_bytes);
    for (int64_t j0 = 0; j0 < n_x; j0 += kGemvColumns) {
      const int64_t n_columns = n_x - j0 < kGemvColumns ? n_x - j0 : kGemvColumns;
      float acc[kGemvColumns] = {};
      for (int64_t b = 0; b < n_blocks; ++b) {
        int8_t q[Traits::elems];
        int16_t wide[Traits::elems];
        float scale[Traits::groups], min[Traits::groups] = {};
        unpack(blocks[b], q, scale, min);
        for (int i = 0; i < Traits::elems; ++i) wide[i] = q[i];
        for (int64_t j = 0; j < n_columns; ++j) {
          const Q8Block* row = x.blocks + ((j0 + j) * x.k + b * Traits::elems) / 32;
          for (int g = 0; g < Traits::groups; ++g) {
            const int32_t dot = dot_group<Traits::group>(wide + g * Traits::group, group_q<Traits::group>(row, g));
            acc[j] = add_group<Traits::has_min>(acc[j], dot, scale[g], row[g * Traits::group / 32].scale, min[g],
                                                group_sum<Traits::group>(row, g));
          }
        }
      }
      for (int64_t j = 0; j < n_columns; ++j) out[(j0 + j) * out_stride + r] = acc[j];
    }
  }
}

// `lanes` weight rows -> PanelQ8: unpack a block of each row, and lay groups of 4 bytes of all rows side by side.
template <quant::Type type, int lanes>
KIMI_INLINE void pack_panel(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out) {
  using Traits = quant::BlockTraits<type>;
  using Block = typename Traits::Block;
  out->bias = 128;
  out->max_q = 255;
  out->group = Traits::group;
  out->has_min = Traits::has_min;
  out->k = k;
  for (int64_t b = 0; b < k / Traits::elems; ++b) {
    uint8_t* panel_q = out->q + b * Traits::elems * lanes;
    float* panel_scale = out->scale + b * Traits::groups * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      int8_t q[Traits::elems] = {};
      float scale[Traits::groups] = {}, min[Traits::groups] = {};
      if (lane < n_rows)
        unpack(reinterpret_cast<const Block*>(static_cast<const uint8_t*>(w) + lane * row_bytes)[b], q, scale, min);
      for (int p = 0; p < Traits::elems / 4; ++p) {
        uint32_t four;
        __builtin_memcpy(&four, q + 4 * p, 4);
        four ^= 0x80808080u;  // the bias of 128
        __builtin_memcpy(panel_q + (p * lanes + lane) * 4, &four, 4);
      }
      for (int g = 0; g < Traits::groups; ++g) panel_scale[g * lanes + lane] = scale[g];
      if constexpr (Traits::has_min) {
        for (int g = 0; g < Traits::groups; ++g) out->min[(b * Traits::groups + g) * lanes + lane] = min[g];
      }
    }
  }
}

// Activation rows that share one widening of a group of the panel.
constexpr int64_t kGemmColumns = 8;

template <int lanes, int group, bool has_min>
KIMI_INLINE void gemm_panel_of(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out,
                               int64_t out_stride) {
  for (int64_t j0 = 0; j0 < n_x; j0 += kGemmColumns) {
    const int64_t n_columns = n_x - j0 < kGemmColumns ? n_x - j0 : kGemmColumns;
    float acc[kGemmColumns][lanes] = {};
    for (int64_t g = 0; g < panel.k / group; ++g) {
      int16_t wide[lanes][group];
      for (int p = 0; p < group / 4; ++p) {
        const uint8_t* fours = panel.q + (g * (group / 4) + p) * lanes * 4;
        for (int lane = 0; lane < lanes; ++lane) {
          for (int i = 0; i < 4; ++i) wide[lane][4 * p + i] = static_cast<int16_t>(fours[4 * lane + i] - 128);
        }
      }
      const float* scale = panel.scale + g * lanes;
      const float* min = has_min ? panel.min + g * lanes : nullptr;
      for (int64_t j = 0; j < n_columns; ++j) {
        const Q8Block* row = x.blocks + (rows ? rows[j0 + j] : j0 + j) * (x.k / 32);
        const int8_t* x_q = group_q<group>(row, g);
        const float x_scale = row[g * group / 32].scale;
        const float x_sum = has_min ? group_sum<group>(row, g) : 0.0f;
        for (int lane = 0; lane < lanes; ++lane) {
          acc[j][lane] = add_group<has_min>(acc[j][lane], dot_group<group>(wide[lane], x_q), scale[lane], x_scale,
                                            has_min ? min[lane] : 0.0f, x_sum);
        }
      }
    }
    for (int64_t j = 0; j < n_columns; ++j) {
      for (int lane = 0; lane < lanes; ++lane) out[(j0 + j) * out_stride + lane] = acc[j][lane];
    }
  }
}

template <int lanes>
KIMI_INLINE void gemm_panel(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out,
                            int64_t out_stride) {
  if (panel.group == 16) {
    if (panel.has_min) {
      gemm_panel_of<lanes, 16, true>(panel, x, rows, n_x, out, out_stride);
    } else {
      gemm_panel_of<lanes, 16, false>(panel, x, rows, n_x, out, out_stride);
    }
  } else if (panel.has_min) {
    gemm_panel_of<lanes, 32, true>(panel, x, rows, n_x, out, out_stride);
  } else {
    gemm_panel_of<lanes, 32, false>(panel, x, rows, n_x, out, out_stride);
  }
}

}  // namespace kimi::cpu::loops
