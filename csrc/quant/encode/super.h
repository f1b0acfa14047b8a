// Superblocks: how the scales of 8 or 16 groups share one f16 scale, and what quants follow from it. Works in four steps:
// fit each group freely (fit.h); choose the shared scale among candidates by what their rounding of the groups' scales
// costs; choose each group's stored scale (and minimum) among neighbours by the true error; refit the shared scale by least
// squares over the whole superblock and choose again. The best state that was seen is written.
#pragma once
#include "quant/encode/fit.h"
#include "quant/encode/pack.h"
#include "quant/encode/weights.h"

namespace kimi::quant {
namespace {

// The candidate d for which  sum over groups of  cost[g] (target[g] - d * level[g])^2  is least, level an integer in
// low..high. Candidates are extreme / divisor, rounded to f16 as they will be stored. A lane holds a candidate.
template <int n_divisors>
KIMI_INLINE Half choose_shared(const float* target, const float* cost, int n_groups, float extreme,
                               const float (&divisors)[n_divisors], float low, float high, PowerOfTwo unit) {
  static_assert(n_divisors % 16 == 0);
  Half candidates[n_divisors];
  float d[n_divisors], inverse[n_divisors], error[n_divisors];
  for (int k = 0; k < n_divisors; ++k) {
    candidates[k] = step_half(extreme / divisors[k] * unit.up);
    d[k] = candidates[k].value * unit.down;
    inverse[k] = 1.0f / d[k];
  }
  for (int k = 0; k < n_divisors; k += kWidth) {
    const F d_k = load(d + k), inverse_k = load(inverse + k);
    F sum = F{};
    for (int g = 0; g < n_groups; ++g) {
      const F off = target[g] - d_k * nearest(clamp(target[g] * inverse_k, splat(low), splat(high)));
      sum += cost[g] * off * off;
    }
    store(error + k, sum);
  }
  int best = 0;
  for (int k = 1; k < n_divisors; ++k)
    if (error[k] < error[best]) best = k;
  return candidates[best];
}

KIMI_INLINE void sum_lanes(const Lane& lanes, int first, int n, double* sum) {
  double total = 0;
  for (int g = first; g < first + n; ++g) total += static_cast<double>(lanes.at[g]);
  *sum = total;
}

// One superblock of 16 groups or two of 8, side by side in the lanes of a tile.
template <class Format>
struct Superblocks {
  static constexpr int kSupers = kTile / Format::kGroups;
  alignas(64) float x[kSupers][256];
  Tile<Format::kElems> tile;
  PowerOfTwo unit[2];  // up 0: nothing there, or nothing but zeros
  int n = 0;           // up to the last that is there
};

// Superblocks b, b + 1 ... of a row of n_blocks.
template <class Format>
KIMI_INLINE void load_superblocks(const float* row, const float* importance, float importance_unit, int64_t b, int64_t n_blocks,
                                  Superblocks<Format>* supers) {
  alignas(64) float w[256];
  for (int s = 0; s < Superblocks<Format>::kSupers; ++s) {
    const int first = s * Format::kGroups;
    const bool there =
        b + s < n_blocks && load_block(row + (b + s) * 256, importance ? importance + (b + s) * 256 : nullptr, importance_unit,
                                       Format::kLarge, kLeastMagnitude, 256, supers->x[s], w, &supers->unit[s]);
    if (there) {
      fill_tile(&supers->tile, supers->x[s], w, first, Format::kGroups);
      supers->n = s + 1;
    } else {
      supers->unit[s].up = 0;
      clear_lanes(&supers->tile, first, Format::kGroups);
    }
  }
}

// ---- value = d * level[g] * q, level signed --------------------------------------------------------------------------

template <class Format>
struct ScaleState {
  Half d[2];    // of the one or two superblocks in the tile
  Lane d_lane;  // the same, per group, in the tile's unit
  Lane level, error;
};

// For each group the level among the neighbours of scale / d that loses least; and the sums that refit d.
template <class Format>
KIMI_INLINE void choose_levels(const Tile<Format::kElems>& tile, const Lane& scale, int reach, ScaleState<Format>* state,
                               Lane* w_xq, Lane* w_qq) {
  using Grid = typename Format::Grid;
  const F low = splat(Format::kLevelLow), high = splat(Format::kLevelHigh);
  for (int lane = 0; lane < kTile; lane += kWidth) {
    const F d = load(state->d_lane.at + lane);
    const F middle = nearest(clamp(load(scale.at + lane) / d, low, high));
    F best = splat(3e38f), best_level = middle, best_xq = F{}, best_qq = F{};
    for (int step = -reach; step <= reach; ++step) {
      const F level = clamp(middle + static_cast<float>(step), low, high);
      const F value = d * level;
      const I some = abs(value) > 0;
      const F inverse = select(some, 1.0f / select(some, value, splat(1)), F{});
      F error = F{}, xq = F{}, qq = F{};
      for (int e = 0; e < Format::kElems; ++e) {
        const F x = load(tile.x[e] + lane), w = load(tile.w[e] + lane);
        const F q = Grid::nearest_value(x * inverse), wq = w * q, off = value * q - x;
        error += w * off * off;
        xq += wq * x;
        qq += wq * q;
      }
      const I better = error < best;
      best = select(better, error, best);
      best_level = select(better, level, best_level);
      best_xq = select(better, xq, best_xq);
      best_qq = select(better, qq, best_qq);
    }
    store(state->level.at + lane, best_level);
    store(state->error.at + lane, best);
    store(w_xq->at + lane, best_xq);
    store(w_qq->at + lane, best_qq);
  }
}

// The shared scales of superblocks whose groups have been fitted.
template <class Format>
KIMI_INLINE void choose_scales(const ScaleFit& fit, const PowerOfTwo* unit, ScaleState<Format>* state) {
  constexpr int kGroups = Format::kGroups;
  for (int s = 0; s < Superblocks<Format>::kSupers; ++s) {
    const float* scale = fit.scale.at + s * kGroups;
    float extreme = 0;
    for (int g = 0; g < kGroups; ++g)
      if (__builtin_fabsf(scale[g]) > __builtin_fabsf(extreme)) extreme = scale[g];
    float d = 1;
    state->d[s] = {0, 0};
    if (unit[s].up > 0 && extreme != 0) {
      state->d[s] = choose_shared(scale, fit.w_qq.at + s * kGroups, kGroups, extreme, Format::kDivisors, Format::kLevelLow,
                                  Format::kLevelHigh, unit[s]);
      d = state->d[s].value * unit[s].down;
    }
    for (int g = 0; g < kGroups; ++g) state->d_lane.at[s * kGroups + g] = d;
  }
}

// The shared scales by least squares over whole superblocks, for the levels that were chosen.
template <class Format>
KIMI_INLINE void refit_scales(const Lane& w_xq, const Lane& w_qq, const PowerOfTwo* unit, ScaleState<Format>* state) {
  constexpr int kGroups = Format::kGroups;
  for (int s = 0; s < Superblocks<Format>::kSupers; ++s) {
    double top = 0, bottom = 0;
    for (int g = s * kGroups; g < (s + 1) * kGroups; ++g) {
      top += static_cast<double>(state->level.at[g]) * static_cast<double>(w_xq.at[g]);
      bottom +=
          static_cast<double>(state->level.at[g]) * static_cast<double>(state->level.at[g]) * static_cast<double>(w_qq.at[g]);
    }
    if (unit[s].up == 0 || !(bottom > 0) || top == 0) continue;
    state->d[s] = step_half(static_cast<float>(top / bottom) * unit[s].up);
    for (int g = 0; g < kGroups; ++g) state->d_lane.at[s * kGroups + g] = state->d[s].value * unit[s].down;
  }
}

// Those superblocks of a state that lose less than the best so far.
template <class Format>
KIMI_INLINE void keep_better(const ScaleState<Format>& state, ScaleState<Format>* best) {
  constexpr int kGroups = Format::kGroups;
  for (int s = 0; s < Superblocks<Format>::kSupers; ++s) {
    double error, least;
    sum_lanes(state.error, s * kGroups, kGroups, &error);
    sum_lanes(best->error, s * kGroups, kGroups, &least);
    if (!(error < least)) continue;
    best->d[s] = state.d[s];
    for (int g = s * kGroups; g < (s + 1) * kGroups; ++g) {
      best->d_lane.at[g] = state.d_lane.at[g];
      best->level.at[g] = state.level.at[g];
      best->error.at[g] = state.error.at[g];
    }
  }
}

// Superblock s of a state, or zeros when nothing is there.
template <class Format>
KIMI_INLINE void write_scaled(const float* x, const ScaleState<Format>& state, int s, bool there, typename Format::Block* block) {
  constexpr int kGroups = Format::kGroups, kElems = Format::kElems;
  uint8_t codes[256], levels[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    const float level = there ? state.level.at[s * kGroups + g] : 0.0f;
    const float value = there ? state.d_lane.at[s * kGroups + g] * level : 0.0f;
    const float inverse = value != 0 ? 1.0f / value : 0.0f;
    levels[g] = static_cast<uint8_t>(static_cast<int>(level) - Format::kLevelLow);
    for (int e = 0; e < kElems; e += kWidth) {
      int32_t wide[kWidth];
      store(wide, Format::Grid::code(there ? load(x + g * kElems + e) * inverse : F{}));
      for (int i = 0; i < kWidth; ++i) codes[g * kElems + e + i] = static_cast<uint8_t>(wide[i]);
    }
  }
  Format::write(codes, levels, there ? state.d[s].bits : 0, block);
}

// Format: kElems per group, kGroups per superblock, Grid, kLevelLow, kLevelHigh, kTargets and kPolish (see fit_scale), kDivisors
// (see choose_shared), kReach and kReachAgain (levels tried at first and later; kReachKnown: with importance), Block,
// write(codes, level codes, block).
template <class Format>
void encode_scaled_superblocks(const float* row, const float* importance, void* out, int64_t n) {
  constexpr int kSupers = Superblocks<Format>::kSupers;
  auto* blocks = static_cast<typename Format::Block*>(out);
  const float importance_unit = unit_of_importance(importance, n);
  const int64_t n_blocks = n / 256;
  for (int64_t b = 0; b < n_blocks; b += kSupers) {
    Superblocks<Format> supers;
    load_superblocks(row, importance, importance_unit, b, n_blocks, &supers);
    ScaleFit fit;
    ScaleState<Format> best, state;
    if (supers.n > 0) {
      fit_scale<typename Format::Grid>(supers.tile, Format::kTargets, Format::kPolish, &fit);
      choose_scales(fit, supers.unit, &state);
      Lane w_xq, w_qq;
      choose_levels(supers.tile, fit.scale, importance ? Format::kReachKnown : Format::kReach, &state, &w_xq, &w_qq);
      best = state;
      for (int round = 0; round < Format::kRounds; ++round) {
        for (int lane = 0; lane < kTile; lane += kWidth)
          store(fit.scale.at + lane, divide(load(w_xq.at + lane), load(w_qq.at + lane)));
        refit_scales(w_xq, w_qq, supers.unit, &state);
        choose_levels(supers.tile, fit.scale, importance ? Format::kReachKnown : Format::kReachAgain, &state, &w_xq, &w_qq);
        keep_better(state, &best);
      }
    }
    for (int s = 0; s < kSupers && b + s < n_blocks; ++s)
      write_scaled(supers.x[s], best, s, supers.n > 0 && supers.unit[s].up > 0, blocks + b + s);
  }
}

}  // namespace
}  // namespace kimi::quant
