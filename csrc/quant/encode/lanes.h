// Lanes: the compiler's vectors at the width of the instruction set that includes this (KIMI_QUANT_LANES floats), and tiles.
// Included only into encode.cpp of one instruction set each; everything has internal linkage.
//
// The bytes that an encoder writes are the same on every instruction set: a lane holds one group and never meets another
// lane in vector code, sums over groups are scalar and in order, and these files are compiled with -ffp-contract=off.
#pragma once
#include <stdint.h>

#include "base/f16.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace kimi::quant {
namespace {

constexpr int kWidth = KIMI_QUANT_LANES;  // floats in a vector: 4, 8 or 16
constexpr int kTile = 16;                 // groups in a tile

typedef float F __attribute__((vector_size(4 * KIMI_QUANT_LANES)));
typedef int32_t I __attribute__((vector_size(4 * KIMI_QUANT_LANES)));

KIMI_INLINE F load(const float* from) {
  F value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
KIMI_INLINE void store(float* to, F value) { __builtin_memcpy(to, &value, sizeof value); }
KIMI_INLINE void store(int32_t* to, I value) { __builtin_memcpy(to, &value, sizeof value); }
KIMI_INLINE F splat(float value) { return F{} + value; }

// a < b ? a : b, lane by lane; written as the instruction where the compiler would not find it.
KIMI_INLINE F min(F a, F b) {
#if KIMI_QUANT_LANES == 16
  return (F)_mm512_min_ps((__m512)a, (__m512)b);
#elif KIMI_QUANT_LANES == 8
  return (F)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (F)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}
KIMI_INLINE F max(F a, F b) {
#if KIMI_QUANT_LANES == 16
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#elif KIMI_QUANT_LANES == 8
  return (F)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (F)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}
KIMI_INLINE F clamp(F value, F low, F high) { return min(max(value, low), high); }
KIMI_INLINE F select(I mask, F yes, F no) { return mask ? yes : no; }
KIMI_INLINE F abs(F value) { return (F)((I)value & 0x7fffffff); }
// To the nearest integer, ties to even; |value| < 2^22. Adding 1.5 * 2^23 leaves no room for a fraction.
KIMI_INLINE F nearest(F value) { return (value + 12582912.0f) - 12582912.0f; }
// value / by where by > 0, otherwise 0.
KIMI_INLINE F divide(F value, F by) {
  const I good = by > 0;
  return select(good, value / select(good, by, splat(1)), F{});
}

// Sixteen groups side by side, one per lane: x[e][g] is element e of group g, and w its weight in the error.
template <int elems>
struct alignas(64) Tile {
  float x[elems][kTile];
  float w[elems][kTile];
};
struct alignas(64) Lane {
  float at[kTile];
};

// The groups of one superblock out of a row: n_groups of them from lane `first_lane` on.
template <int elems>
KIMI_INLINE void fill_tile(Tile<elems>* tile, const float* x, const float* w, int first_lane, int n_groups) {
  for (int g = 0; g < n_groups; ++g) {
    for (int e = 0; e < elems; ++e) {
      tile->x[e][first_lane + g] = x[g * elems + e];
      tile->w[e][first_lane + g] = w[g * elems + e];
    }
  }
}
template <int elems>
KIMI_INLINE void clear_lanes(Tile<elems>* tile, int first_lane, int n_groups) {
  for (int e = 0; e < elems; ++e) {
    for (int g = first_lane; g < first_lane + n_groups; ++g) {
      tile->x[e][g] = 0;
      tile->w[e][g] = 1;
    }
  }
}

// A power of two that brings the largest magnitude into [1, 2), so that squares of small and large weights neither vanish
// nor overflow. Exact in both directions. `largest` is finite and at least 2^-126.
struct PowerOfTwo {
  float down, up;  // x * down in [-2, 2]; back by * up
};
KIMI_INLINE PowerOfTwo unit_scale(float largest) {
  const uint32_t exponent = f32_to_bits(largest) >> 23;  // 1..254
  const uint32_t limited = exponent > 253 ? 253 : exponent;
  return {f32_from_bits((254 - limited) << 23), f32_from_bits(limited << 23)};
}

// The f16 nearest to `value` that is finite and, with at_least_one_step, not zero.
struct Half {
  uint16_t bits;
  float value;
};
KIMI_INLINE Half finite_half(float value) {
  uint16_t bits = f16_from_f32(value);
  if ((bits & 0x7fff) >= 0x7c00) bits = static_cast<uint16_t>((bits & 0x8000) | 0x7bff);
  return {bits, f32_from_f16(bits)};
}
KIMI_INLINE Half step_half(float value) {
  Half half = finite_half(value);
  if ((half.bits & 0x7fff) == 0) {
    half.bits |= 1;
    half.value = f32_from_f16(half.bits);
  }
  return half;
}
KIMI_INLINE void store_u16(uint8_t* to, uint16_t bits) { __builtin_memcpy(to, &bits, 2); }

// n: a multiple of 16.
KIMI_INLINE float largest_magnitude(const float* x, int n) {
  F most = F{};
  for (int i = 0; i < n; i += kWidth) most = max(most, abs(load(x + i)));
  float lanes[kWidth], largest = 0;
  store(lanes, most);
  for (int lane = 0; lane < kWidth; ++lane) largest = lanes[lane] > largest ? lanes[lane] : largest;
  return largest;
}

}  // namespace
}  // namespace kimi::quant
