// Superblocks with minimums (Q2_K, Q4_K, Q5_K): the steps of super.h with two shared scales, one for the scales and one for
// the minimums of the groups.
#pragma once
#include "quant/encode/super.h"

namespace kimi::quant {
namespace {

// ---- value = d * level[g] * q - dmin * min_level[g] ------------------------------------------------------------------

struct OffsetState {
  Half d[2], dmin[2];
  Lane d_lane, dmin_lane;
  Lane level, min_level, error;
};

// For each group the pair of levels near the fit that loses least, and a new free fit to the quants of that pair. For a
// given scale the minimum follows from the fit's sums; its neighbours are tried as well.
template <class Format>
KIMI_INLINE void choose_level_pairs(const Tile<Format::kElems>& tile, int reach, int min_reach, OffsetFit* fit,
                                    OffsetState* state) {
  const F zero = F{}, top = splat(Format::kLevels), most = splat(Format::kMost);
  for (int lane = 0; lane < kTile; lane += kWidth) {
    const F d = load(state->d_lane.at + lane), dmin = load(state->dmin_lane.at + lane);
    const F w = load(fit->w.at + lane), w_x = load(fit->w_x.at + lane), w_q = load(fit->w_q.at + lane);
    const F middle = nearest(clamp(load(fit->scale.at + lane) / d, zero, top));
    F best = splat(3e38f), best_level = zero, best_min = zero, best_q = zero, best_qq = zero, best_xq = zero;
    for (int step = -reach; step <= reach; ++step) {
      const F level = clamp(middle + static_cast<float>(step), zero, top);
      const F scale = d * level, inverse = divide(splat(1), scale);
      const F min_middle = nearest(clamp(divide(scale * w_q - w_x, w) / dmin, zero, top));
      for (int min_step = -min_reach; min_step <= min_reach; ++min_step) {
        const F min_level = clamp(min_middle + static_cast<float>(min_step), zero, top);
        const F minimum = dmin * min_level;
        F error = zero, sum_q = zero, sum_qq = zero, sum_xq = zero;
        for (int e = 0; e < Format::kElems; ++e) {
          const F x = load(tile.x[e] + lane), we = load(tile.w[e] + lane);
          const F raised = x + minimum;
          const F q = nearest(clamp(raised * inverse, zero, most)), wq = we * q, off = scale * q - raised;
          error += we * off * off;
          sum_q += wq;
          sum_qq += wq * q;
          sum_xq += wq * x;
        }
        const I better = error < best;
        best = select(better, error, best);
        best_level = select(better, level, best_level);
        best_min = select(better, min_level, best_min);
        best_q = select(better, sum_q, best_q);
        best_qq = select(better, sum_qq, best_qq);
        best_xq = select(better, sum_xq, best_xq);
      }
    }
    F scale, minimum;
    solve_offset<false>(w, w_x, best_q, best_qq, best_xq, &scale, &minimum);
    store(fit->scale.at + lane, scale);
    store(fit->min.at + lane, minimum);
    store(fit->w_q.at + lane, best_q);
    store(fit->w_qq.at + lane, best_qq);
    store(fit->w_xq.at + lane, best_xq);
    store(state->level.at + lane, best_level);
    store(state->min_level.at + lane, best_min);
    store(state->error.at + lane, best);
  }
}

// d and dmin of one superblock by least squares over all its elements, levels and quants given.
KIMI_INLINE void refit_pair(const OffsetFit& fit, int first, int n_groups, PowerOfTwo unit, OffsetState* state, int s) {
  double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
  for (int g = first; g < first + n_groups; ++g) {
    const double level = static_cast<double>(state->level.at[g]), min_level = static_cast<double>(state->min_level.at[g]);
    aa += level * level * static_cast<double>(fit.w_qq.at[g]);
    ab += level * min_level * static_cast<double>(fit.w_q.at[g]);
    bb += min_level * min_level * static_cast<double>(fit.w.at[g]);
    xa += level * static_cast<double>(fit.w_xq.at[g]);
    xb += min_level * static_cast<double>(fit.w_x.at[g]);
  }
  const double determinant = aa * bb - ab * ab;
  double d = 0, dmin = 0;
  if (determinant > 1e-9 * aa * bb) {
    d = (xa * bb - xb * ab) / determinant;
    dmin = (xa * ab - xb * aa) / determinant;
  } else if (aa > 0) {
    d = xa / aa;
  }
  if (d > 0) state->d[s] = step_half(static_cast<float>(d) * unit.up);
  if (dmin > 0) state->dmin[s] = step_half(static_cast<float>(dmin) * unit.up);
}

KIMI_INLINE void spread_pair(PowerOfTwo unit, int first, int n_groups, int s, OffsetState* state) {
  const bool there = unit.up > 0;
  for (int g = first; g < first + n_groups; ++g) {
    state->d_lane.at[g] = there ? state->d[s].value * unit.down : 1.0f;
    state->dmin_lane.at[g] = there ? state->dmin[s].value * unit.down : 1.0f;
  }
}

// The shared scales and minimums of superblocks whose groups have been fitted.
template <class Format>
KIMI_INLINE void choose_pairs(const OffsetFit& fit, const PowerOfTwo* unit, OffsetState* state) {
  constexpr int kGroups = Format::kGroups;
  Lane cost;
  for (int g = 0; g < kTile; ++g) {
    // What a deviation of the scale costs once the minimum has followed it.
    const float follows = fit.min.at[g] > 0 ? fit.w_q.at[g] * fit.w_q.at[g] / fit.w.at[g] : 0.0f;
    cost.at[g] = fit.w_qq.at[g] > follows ? fit.w_qq.at[g] - follows : 0.0f;
  }
  for (int s = 0; s < Superblocks<Format>::kSupers; ++s) {
    const int first = s * kGroups;
    state->d[s] = state->dmin[s] = {0, 0};
    if (unit[s].up > 0) {
      float scale = 0, minimum = 0;
      for (int g = first; g < first + kGroups; ++g) {
        scale = fit.scale.at[g] > scale ? fit.scale.at[g] : scale;
        minimum = fit.min.at[g] > minimum ? fit.min.at[g] : minimum;
      }
      state->d[s] =
          choose_shared(fit.scale.at + first, cost.at + first, kGroups, scale, Format::kDivisors, 0.0f, Format::kLevels, unit[s]);
      state->dmin[s] = choose_shared(fit.min.at + first, fit.w.at + first, kGroups, minimum, Format::kDivisors, 0.0f,
                                     Format::kLevels, unit[s]);
    }
    spread_pair(unit[s], first, kGroups, s, state);
  }
}

// Those superblocks of a state that lose less than the best so far.
KIMI_INLINE void keep_better(const OffsetState& state, int n_groups, OffsetState* best) {
  for (int s = 0; s < kTile / n_groups; ++s) {
    double error, least;
    sum_lanes(state.error, s * n_groups, n_groups, &error);
    sum_lanes(best->error, s * n_groups, n_groups, &least);
    if (!(error < least)) continue;
    best->d[s] = state.d[s];
    best->dmin[s] = state.dmin[s];
    for (int g = s * n_groups; g < (s + 1) * n_groups; ++g) {
      best->d_lane.at[g] = state.d_lane.at[g];
      best->dmin_lane.at[g] = state.dmin_lane.at[g];
      best->level.at[g] = state.level.at[g];
      best->min_level.at[g] = state.min_level.at[g];
      best->error.at[g] = state.error.at[g];
    }
  }
}

// Superblock s of a state, or zeros when nothing is there.
template <class Format>
KIMI_INLINE void write_offset(const float* x, const OffsetState& state, int s, bool there, typename Format::Block* block) {
  constexpr int kGroups = Format::kGroups, kElems = Format::kElems;
  uint8_t codes[256], levels[kGroups], min_levels[kGroups];
  for (int g = 0; g < kGroups; ++g) {
    const int at = s * kGroups + g;
    const float level = there ? state.level.at[at] : 0.0f, min_level = there ? state.min_level.at[at] : 0.0f;
    const float scale = there ? state.d_lane.at[at] * level : 0.0f, minimum = there ? state.dmin_lane.at[at] * min_level : 0.0f;
    const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    levels[g] = static_cast<uint8_t>(level);
    min_levels[g] = static_cast<uint8_t>(min_level);
    for (int e = 0; e < kElems; e += kWidth) {
      int32_t wide[kWidth];
      const F raised = (there ? load(x + g * kElems + e) : F{}) + minimum;
      store(wide, __builtin_convertvector(nearest(clamp(raised * inverse, F{}, splat(Format::kMost))), I));
      for (int i = 0; i < kWidth; ++i) codes[g * kElems + e + i] = static_cast<uint8_t>(wide[i]);
    }
  }
  Format::write(codes, levels, min_levels, there ? state.d[s].bits : 0, there ? state.dmin[s].bits : 0, block);
}

// Format: kElems, kGroups, kLevels (most level), kMost (most q), kStretches, kDivisors, reaches, Block, write(...).
template <class Format>
void encode_offset_superblocks(const float* row, const float* importance, void* out, int64_t n) {
  constexpr int kGroups = Format::kGroups, kSupers = Superblocks<Format>::kSupers;
  auto* blocks = static_cast<typename Format::Block*>(out);
  const float importance_unit = unit_of_importance(importance, n);
  const int64_t n_blocks = n / 256;
  for (int64_t b = 0; b < n_blocks; b += kSupers) {
    Superblocks<Format> supers;
    load_superblocks(row, importance, importance_unit, b, n_blocks, &supers);
    OffsetFit fit;
    OffsetState best, state;
    if (supers.n > 0) {
      fit_offset<Format::kElems, false>(supers.tile, Format::kMost, Format::kStretches, Format::kRefits, &fit);
      choose_pairs<Format>(fit, supers.unit, &state);
      choose_level_pairs<Format>(supers.tile, Format::kReach, Format::kMinReach, &fit, &state);
      best = state;
      for (int round = 0; round < Format::kRounds; ++round) {
        for (int s = 0; s < kSupers; ++s) {
          if (supers.unit[s].up == 0) continue;
          refit_pair(fit, s * kGroups, kGroups, supers.unit[s], &state, s);
          spread_pair(supers.unit[s], s * kGroups, kGroups, s, &state);
        }
        choose_level_pairs<Format>(supers.tile, Format::kReachAgain, Format::kMinReachAgain, &fit, &state);
        keep_better(state, kGroups, &best);
      }
    }
    for (int s = 0; s < kSupers && b + s < n_blocks; ++s)
      write_offset<Format>(supers.x[s], best, s, supers.n > 0 && supers.unit[s].up > 0, blocks + b + s);
  }
}

}  // namespace
}  // namespace kimi::quant
