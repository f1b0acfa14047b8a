// Fits of one group, sixteen at a time: which scale (and minimum) and quants lose least, before anything is said about how
// the scales are stored. The error of a group is  sum over e of  w[e] (x[e] - value[e])^2.
//
// For given quants the best scale and minimum are a weighted least-squares fit, and its error follows from five sums without
// a second look at the elements. So each candidate costs one pass: scale the elements, round, and add up the sums.
#pragma once
#include "quant/blocks.h"
#include "quant/encode/lanes.h"

namespace kimi::quant {
namespace {

// ---- value = scale * q, q on a grid ----------------------------------------------------------------------------------

// Integers low..high.
template <int low, int high>
struct IntegerGrid {
  static constexpr int kLow = low, kHigh = high;
  KIMI_INLINE F nearest_value(F t) { return nearest(clamp(t, splat(low), splat(high))); }
  // Codes of a row's elements: the value minus the lowest.
  KIMI_INLINE I code(F t) { return __builtin_convertvector(nearest_value(t), I) - low; }
};

// The sixteen values of IQ4_NL and IQ4_XS: compared with the fifteen middles between neighbours.
struct Iq4Grid {
  static constexpr int kLow = -127, kHigh = 113;
  KIMI_INLINE F nearest_value(F t) {
    I value = I{} + kIq4Values[0];
    for (int i = 1; i < 16; ++i) {
      const float middle = 0.5f * static_cast<float>(kIq4Values[i - 1] + kIq4Values[i]);
      value += (I)(t > middle) & (kIq4Values[i] - kIq4Values[i - 1]);
    }
    return __builtin_convertvector(value, F);
  }
  KIMI_INLINE I code(F t) {
    I code = I{};
    for (int i = 1; i < 16; ++i) code -= (I)(t > 0.5f * static_cast<float>(kIq4Values[i - 1] + kIq4Values[i]));
    return code;
  }
};

struct ScaleFit {
  Lane scale;  // least squares for the best candidate's quants
  Lane w_qq;   // sum of w q^2: how dearly a deviation of the scale is paid
};

template <int elems>
KIMI_INLINE F extreme_of(const Tile<elems>& tile, int lane) {
  F extreme = F{};
  for (int e = 0; e < elems; ++e) {
    const F x = load(tile.x[e] + lane);
    extreme = select(abs(x) > abs(extreme), x, extreme);
  }
  return extreme;
}

template <class Grid, int elems>
KIMI_INLINE void sums_of_scale(const Tile<elems>& tile, int lane, F inverse, F* w_xq, F* w_qq) {
  F xq = F{}, qq = F{};
  for (int e = 0; e < elems; ++e) {
    const F x = load(tile.x[e] + lane), w = load(tile.w[e] + lane);
    const F q = Grid::nearest_value(x * inverse), wq = w * q;
    xq += wq * x;
    qq += wq * q;
  }
  *w_xq = xq;
  *w_qq = qq;
}

// targets: where on the grid the element of the largest magnitude is put, of either sign. polish: by what the inverse of the
// best scale so far is multiplied to look around it; 1 takes new quants for the same scale.
template <class Grid, int elems, int n_targets, int n_polish>
KIMI_INLINE void fit_scale(const Tile<elems>& tile, const float (&targets)[n_targets], const float (&polish)[n_polish],
                           ScaleFit* fit) {
  for (int lane = 0; lane < kTile; lane += kWidth) {
    const F extreme = extreme_of(tile, lane);
    const I any = abs(extreme) > 0;
    const F unit = select(any, 1.0f / select(any, extreme, splat(1)), F{});
    F best_gain = splat(-1), best_scale = F{}, best_qq = F{};
    const auto consider = [&](F inverse) __attribute__((always_inline)) {
      F xq, qq;
      sums_of_scale<Grid>(tile, lane, inverse, &xq, &qq);
      const F scale = divide(xq, qq), gain = scale * xq;  // the error is sum w x^2 - gain
      const I better = gain > best_gain;
      best_gain = select(better, gain, best_gain);
      best_scale = select(better, scale, best_scale);
      best_qq = select(better, qq, best_qq);
    };
    for (int k = 0; k < n_targets; ++k) consider(unit * targets[k]);
    for (int k = 0; k < n_polish; ++k) {
      const I some = abs(best_scale) > 0;
      consider(select(some, polish[k] / select(some, best_scale, splat(1)), F{}));
    }
    store(fit->scale.at + lane, best_scale);
    store(fit->w_qq.at + lane, best_qq);
  }
}

// ---- value = scale * q - min, q in 0..most ---------------------------------------------------------------------------

struct OffsetFit {
  Lane scale, min;               // least squares for the best candidate's quants
  Lane w, w_x, w_q, w_qq, w_xq;  // sums of w, w x, w q, w q^2, w x q for those quants
};

template <int elems>
KIMI_INLINE void sums_of_offset(const Tile<elems>& tile, int lane, F inverse, F shift, F most, F* w_q, F* w_qq, F* w_xq) {
  F sum_q = F{}, sum_qq = F{}, sum_xq = F{};
  for (int e = 0; e < elems; ++e) {
    const F x = load(tile.x[e] + lane), w = load(tile.w[e] + lane);
    const F q = nearest(clamp(x * inverse + shift, F{}, most)), wq = w * q;
    sum_q += wq;
    sum_qq += wq * q;
    sum_xq += wq * x;
  }
  *w_q = sum_q;
  *w_qq = sum_qq;
  *w_xq = sum_xq;
}

// Scale and minimum for given sums; any_sign: the minimum may be negative too. Returns what the fit takes off the error.
template <bool any_sign>
KIMI_INLINE F solve_offset(F w, F w_x, F w_q, F w_qq, F w_xq, F* scale, F* min) {
  const F both = divide(w * w_xq - w_x * w_q, w * w_qq - w_q * w_q);
  F offset = divide(w_x - both * w_q, w);
  F slope = both;
  if (!any_sign) {
    const I above = offset > 0;
    offset = select(above, F{}, offset);
    slope = select(above, divide(w_xq, w_qq), both);
  }
  *scale = slope;
  *min = -offset;
  return slope * w_xq + offset * w_x;
}

// stretches: how many steps more than `most` the range of the group is divided into, and how many of these are cut off
// below; the rest is cut off above.
struct Stretch {
  float more, below;
};

template <int elems, bool any_sign, int n_stretches>
KIMI_INLINE void fit_offset(const Tile<elems>& tile, float most_steps, const Stretch (&stretches)[n_stretches], int n_refits,
                            OffsetFit* fit) {
  const F most = splat(most_steps);
  for (int lane = 0; lane < kTile; lane += kWidth) {
    F low = load(tile.x[0] + lane), high = low, w = F{}, w_x = F{};
    for (int e = 0; e < elems; ++e) {
      const F x = load(tile.x[e] + lane), we = load(tile.w[e] + lane);
      low = min(low, x);
      high = max(high, x);
      w += we;
      w_x += we * x;
    }
    if (!any_sign) low = min(low, F{});
    const F per_step = divide(splat(1), high - low);
    F best_gain = splat(-1), best_scale = F{}, best_min = -low, best_q = F{}, best_qq = F{}, best_xq = F{};
    const auto consider = [&](F inverse, F shift) __attribute__((always_inline)) {
      F w_q, w_qq, w_xq, scale, minimum;
      sums_of_offset(tile, lane, inverse, shift, most, &w_q, &w_qq, &w_xq);
      const F gain = solve_offset<any_sign>(w, w_x, w_q, w_qq, w_xq, &scale, &minimum);
      const I better = (I)(gain > best_gain) & (I)(scale >= 0);
      best_gain = select(better, gain, best_gain);
      best_scale = select(better, scale, best_scale);
      best_min = select(better, minimum, best_min);
      best_q = select(better, w_q, best_q);
      best_qq = select(better, w_qq, best_qq);
      best_xq = select(better, w_xq, best_xq);
    };
    for (int k = 0; k < n_stretches; ++k) {
      const F inverse = per_step * (most_steps + stretches[k].more);
      consider(inverse, -low * inverse - stretches[k].below);
    }
    for (int k = 0; k < n_refits; ++k) {
      const F inverse = divide(splat(1), best_scale);
      consider(inverse, best_min * inverse);
    }
    store(fit->scale.at + lane, best_scale);
    store(fit->min.at + lane, best_min);
    store(fit->w.at + lane, w);
    store(fit->w_x.at + lane, w_x);
    store(fit->w_q.at + lane, best_q);
    store(fit->w_qq.at + lane, best_qq);
    store(fit->w_xq.at + lane, best_xq);
  }
}

}  // namespace
}  // namespace kimi::quant
