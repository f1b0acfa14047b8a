// Blocks of 32 with a scale of their own: Q4_0, Q4_1, Q5_0, Q5_1 when columns have importance, IQ4_NL and MXFP4 always.
// Sixteen blocks at a time, one per lane.
#pragma once
#include "quant/encode/super.h"

namespace kimi::quant {
namespace {

constexpr int kBlock = 32;

// Sixteen blocks of a row as a tile, their units, and which of them are more than zeros.
struct Blocks {
  alignas(64) float x[kTile][kBlock];
  Tile<kBlock> tile;
  PowerOfTwo unit[kTile];
  bool there[kTile];
};
KIMI_INLINE void load_blocks(const float* row, const float* importance, float importance_unit, float large, float least,
                             int64_t n_left, Blocks* blocks) {
  float w[kBlock];
  for (int g = 0; g < kTile; ++g) {
    blocks->there[g] = g < n_left && load_block(row + g * kBlock, importance ? importance + g * kBlock : nullptr, importance_unit,
                                                large, least, kBlock, blocks->x[g], w, &blocks->unit[g]);
    if (blocks->there[g]) {
      fill_tile(&blocks->tile, blocks->x[g], w, g, 1);
    } else {
      blocks->unit[g] = {1, 1};
      clear_lanes(&blocks->tile, g, 1);
    }
  }
}

// value = d * q. Format: Grid, kTargets and kPolish (see fit_scale), kRounds, kLarge, Block, write(codes, d bits, block).
template <class Format>
struct OneLevel : Format {
  static constexpr int kElems = kBlock, kLevelLow = 1, kLevelHigh = 1;
};
template <class Format>
void encode_scaled_blocks(const float* row, const float* importance, void* out, int64_t n) {
  using One = OneLevel<Format>;
  auto* block = static_cast<typename Format::Block*>(out);
  const float importance_unit = unit_of_importance(importance, n);
  const int64_t n_blocks = n / kBlock;
  for (int64_t b = 0; b < n_blocks; b += kTile) {
    Blocks blocks;
    load_blocks(row + b * kBlock, importance ? importance + b * kBlock : nullptr, importance_unit, Format::kLarge,
                kLeastMagnitude, n_blocks - b, &blocks);
    ScaleFit fit;
    fit_scale<typename Format::Grid>(blocks.tile, Format::kTargets, Format::kPolish, &fit);
    ScaleState<One> best{}, state{};
    Lane scale = fit.scale, w_xq, w_qq;
    uint16_t bits[kTile] = {};
    for (int round = 0; round <= Format::kRounds; ++round) {
      uint16_t tried[kTile];
      for (int g = 0; g < kTile; ++g) {
        const Half half = step_half(scale.at[g] * blocks.unit[g].up);
        tried[g] = half.bits;
        state.d_lane.at[g] = half.value * blocks.unit[g].down;
      }
      choose_levels<One>(blocks.tile, scale, 0, &state, &w_xq, &w_qq);
      for (int g = 0; g < kTile; ++g) {
        if (round == 0 || state.error.at[g] < best.error.at[g]) {
          best.error.at[g] = state.error.at[g];
          best.d_lane.at[g] = state.d_lane.at[g];
          bits[g] = tried[g];
        }
      }
      for (int lane = 0; lane < kTile; lane += kWidth) store(scale.at + lane, divide(load(w_xq.at + lane), load(w_qq.at + lane)));
    }
    for (int g = 0; g < kTile && b + g < n_blocks; ++g) {
      uint8_t codes[kBlock];
      const float inverse = blocks.there[g] ? 1.0f / best.d_lane.at[g] : 0.0f;
      for (int e = 0; e < kBlock; e += kWidth) {
        int32_t wide[kWidth];
        store(wide, Format::Grid::code(blocks.there[g] ? load(blocks.x[g] + e) * inverse : F{}));
        for (int i = 0; i < kWidth; ++i) codes[e + i] = static_cast<uint8_t>(wide[i]);
      }
      Format::write(codes, blocks.there[g] ? bits[g] : 0, block + b + g);
    }
  }
}

// value = d * q + m, m of any sign: the error, and the fit to the quants, of given d and m per lane.
KIMI_INLINE void measure_offset(const Tile<kBlock>& tile, const Lane& d_lane, const Lane& m_lane, float most, OffsetFit* fit,
                                Lane* error) {
  for (int lane = 0; lane < kTile; lane += kWidth) {
    const F d = load(d_lane.at + lane), m = load(m_lane.at + lane), inverse = divide(splat(1), d);
    F sum = F{}, w_q = F{}, w_qq = F{}, w_xq = F{}, scale, minimum;
    for (int e = 0; e < kBlock; ++e) {
      const F x = load(tile.x[e] + lane), w = load(tile.w[e] + lane), raised = x - m;
      const F q = nearest(clamp(raised * inverse, F{}, splat(most))), wq = w * q, off = d * q - raised;
      sum += w * off * off;
      w_q += wq;
      w_qq += wq * q;
      w_xq += wq * x;
    }
    solve_offset<true>(load(fit->w.at + lane), load(fit->w_x.at + lane), w_q, w_qq, w_xq, &scale, &minimum);
    store(fit->scale.at + lane, scale);
    store(fit->min.at + lane, minimum);
    store(error->at + lane, sum);
  }
}

// Format: kMost, kStretches, kRefits, kRounds, kLarge, Block, write(codes, d bits, m bits, block).
template <class Format>
void encode_offset_blocks(const float* row, const float* importance, void* out, int64_t n) {
  auto* block = static_cast<typename Format::Block*>(out);
  const float importance_unit = unit_of_importance(importance, n);
  const int64_t n_blocks = n / kBlock;
  for (int64_t b = 0; b < n_blocks; b += kTile) {
    Blocks blocks;
    load_blocks(row + b * kBlock, importance ? importance + b * kBlock : nullptr, importance_unit, Format::kLarge,
                kLeastMagnitude, n_blocks - b, &blocks);
    OffsetFit fit;
    fit_offset<kBlock, true>(blocks.tile, Format::kMost, Format::kStretches, Format::kRefits, &fit);
    Lane d, m, error, best_d{}, best_m{}, best_error{};
    uint16_t d_bits[kTile] = {}, m_bits[kTile] = {};
    for (int round = 0; round <= Format::kRounds; ++round) {
      Half d_half[kTile], m_half[kTile];
      for (int g = 0; g < kTile; ++g) {
        d_half[g] = step_half(fit.scale.at[g] * blocks.unit[g].up);
        m_half[g] = finite_half(-fit.min.at[g] * blocks.unit[g].up);
        d.at[g] = d_half[g].value * blocks.unit[g].down;
        m.at[g] = m_half[g].value * blocks.unit[g].down;
      }
      measure_offset(blocks.tile, d, m, Format::kMost, &fit, &error);
      for (int g = 0; g < kTile; ++g) {
        if (round == 0 || error.at[g] < best_error.at[g]) {
          best_error.at[g] = error.at[g];
          best_d.at[g] = d.at[g];
          best_m.at[g] = m.at[g];
          d_bits[g] = d_half[g].bits;
          m_bits[g] = m_half[g].bits;
        }
      }
    }
    for (int g = 0; g < kTile && b + g < n_blocks; ++g) {
      uint8_t codes[kBlock];
      const float inverse = blocks.there[g] && best_d.at[g] > 0 ? 1.0f / best_d.at[g] : 0.0f;
      for (int e = 0; e < kBlock; e += kWidth) {
        int32_t wide[kWidth];
        const F raised = blocks.there[g] ? load(blocks.x[g] + e) - best_m.at[g] : F{};
        store(wide, __builtin_convertvector(nearest(clamp(raised * inverse, F{}, splat(Format::kMost))), I));
        for (int i = 0; i < kWidth; ++i) codes[e + i] = static_cast<uint8_t>(wide[i]);
      }
      Format::write(codes, blocks.there[g] ? d_bits[g] : 0, blocks.there[g] ? m_bits[g] : 0, block + b + g);
    }
  }
}

// ---- MXFP4: value = 2^(e - 128) * q, three exponents tried -----------------------------------------------------------

struct E2m1Grid {
  KIMI_INLINE F nearest_value(F t) {
    const F size = abs(t);
    I value = I{};
    for (int i = 1; i < 8; ++i) {
      value +=
          (I)(size > 0.5f * static_cast<float>(kE2m1Doubled[i - 1] + kE2m1Doubled[i])) & (kE2m1Doubled[i] - kE2m1Doubled[i - 1]);
    }
    const F magnitude = __builtin_convertvector(value, F);
    return t < 0 ? -magnitude : magnitude;
  }
  KIMI_INLINE I code(F t) {
    const F size = abs(t);
    I code = I{};
    for (int i = 1; i < 8; ++i) code -= (I)(size > 0.5f * static_cast<float>(kE2m1Doubled[i - 1] + kE2m1Doubled[i]));
    return code + ((I)(t < 0) & (I)(code > 0) & 8);
  }
};
void encode_mxfp4(const float* row, const float* importance, void* out, int64_t n) {
  auto* block = static_cast<BlockMXFP4*>(out);
  const float importance_unit = unit_of_importance(importance, n);
  const int64_t n_blocks = n / kBlock;
  for (int64_t b = 0; b < n_blocks; b += kTile) {
    Blocks blocks;
    load_blocks(row + b * kBlock, importance ? importance + b * kBlock : nullptr, importance_unit, 0.0f, 0x1p-120f, n_blocks - b,
                &blocks);
    // The largest magnitude lies in [1, 2) and becomes 6 halves at least, 12 at most or beyond.
    constexpr float kSteps[3] = {0.125f, 0.25f, 0.0625f};
    constexpr int kExponents[3] = {-3, -2, -4};
    Lane errors[3];
    for (int k = 0; k < 3; ++k) {
      for (int lane = 0; lane < kTile; lane += kWidth) {
        F error = F{};
        for (int e = 0; e < kBlock; ++e) {
          const F x = load(blocks.tile.x[e] + lane), w = load(blocks.tile.w[e] + lane);
          const F off = E2m1Grid::nearest_value(x * (1.0f / kSteps[k])) * kSteps[k] - x;
          error += w * off * off;
        }
        store(errors[k].at + lane, error);
      }
    }
    for (int g = 0; g < kTile && b + g < n_blocks; ++g) {
      int best = 0;
      for (int k = 1; k < 3; ++k)
        if (errors[k].at[g] < errors[best].at[g]) best = k;
      uint8_t codes[kBlock];
      for (int e = 0; e < kBlock; e += kWidth) {
        int32_t wide[kWidth];
        store(wide, E2m1Grid::code(blocks.there[g] ? load(blocks.x[g] + e) * (1.0f / kSteps[best]) : F{}));
        for (int i = 0; i < kWidth; ++i) codes[e + i] = static_cast<uint8_t>(wide[i]);
      }
      const int exponent = static_cast<int>(f32_to_bits(blocks.unit[g].up) >> 23) - 127 + kExponents[best] + 128;
      block[b + g].e = static_cast<uint8_t>(!blocks.there[g] || exponent < 0 ? 0 : exponent);
      pack_nibbles(codes, block[b + g].qs);
    }
  }
}

}  // namespace
}  // namespace kimi::quant
