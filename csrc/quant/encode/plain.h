// Encoders that take the scale from the largest element and search nothing: F16, BF16, Q8_0, and Q4_0, Q4_1, Q5_0, Q5_1 when
// nobody says which columns matter. They write what the published quantizers write for the same floats, byte for byte.
#pragma once
#include "quant/blocks.h"
#include "quant/encode/lanes.h"
#include "quant/encode/pack.h"

namespace kimi::quant {
namespace {

KIMI_INLINE void plain_f16(const float* row, void* out, int64_t n) {
  auto* bytes = static_cast<uint8_t*>(out);
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i halves = _mm256_cvtps_ph(_mm256_loadu_ps(row + i), _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(bytes + 2 * i, &halves, 16);
  }
#endif
  for (; i < n; ++i) store_u16(bytes + 2 * i, f16_from_f32(row[i]));
}
KIMI_INLINE void plain_bf16(const float* row, void* out, int64_t n) {
  auto* bytes = static_cast<uint8_t*>(out);
  for (int64_t i = 0; i < n; ++i) store_u16(bytes + 2 * i, bf16_from_f32(row[i]));
}

// 1 / d in float, 0 where that is not a number that can be used (d is 0, or so small that the f16 beside it is 0 too).
KIMI_INLINE float inverse_or_zero(float d) {
  const float magnitude = f32_from_bits(f32_to_bits(d) & 0x7fffffff);
  return magnitude >= 0x1p-126f ? 1.0f / d : 0.0f;
}
// The scale as float and as f16. Past the range of f16 the largest one stands, and the quants are taken against that.
KIMI_INLINE uint16_t half_scale(float* d) {
  const Half half = finite_half(*d);
  if (*d > 65520.0f || *d < -65520.0f) *d = half.value;
  return half.bits;
}

struct Range {
  float low, high;
};
KIMI_INLINE Range range_of_32(const float* x) {
  F low = load(x), high = low;
  for (int i = kWidth; i < 32; i += kWidth) {
    low = min(low, load(x + i));
    high = max(high, load(x + i));
  }
  float lows[kWidth], highs[kWidth];
  store(lows, low);
  store(highs, high);
  Range range{lows[0], highs[0]};
  for (int lane = 1; lane < kWidth; ++lane) {
    range.low = lows[lane] < range.low ? lows[lane] : range.low;
    range.high = highs[lane] > range.high ? highs[lane] : range.high;
  }
  return range;
}

KIMI_INLINE void plain_q8_0_block(const float* x, BlockQ8_0* block) {
  float d = largest_magnitude(x, 32) / 127.0f;
  store_u16(block->d, half_scale(&d));
  const float inverse = inverse_or_zero(d);
  int32_t q[32];
  for (int i = 0; i < 32; i += kWidth) {  // to the nearest, ties away from zero
    const F scaled = load(x + i) * inverse, magnitude = min(abs(scaled), splat(127));
    I whole = __builtin_convertvector(magnitude, I);
    whole -= (I)(magnitude - __builtin_convertvector(whole, F) >= 0.5f);
    store(q + i, scaled < 0 ? -whole : whole);
  }
  for (int i = 0; i < 32; ++i) block->qs[i] = static_cast<int8_t>(q[i]);
}

// Quants of x * inverse + shift, truncated: `shift` holds the zero point and the half that makes truncation rounding.
KIMI_INLINE void truncated_quants(const float* x, float low, float inverse, float shift, int most, uint8_t* q) {
  int32_t wide[32];
  for (int i = 0; i < 32; i += kWidth) {
    const F scaled = (load(x + i) - low) * inverse + shift;
    store(wide + i, __builtin_convertvector(clamp(scaled, F{}, splat(static_cast<float>(most))), I));
  }
  for (int i = 0; i < 32; ++i) q[i] = static_cast<uint8_t>(wide[i]);
}

// Symmetric: the element of the largest magnitude (the first of equal ones) becomes -half, exactly.
KIMI_INLINE uint16_t plain_symmetric(const float* x, int half, uint8_t* q) {
  const Range range = range_of_32(x);
  float extreme = range.high > -range.low ? range.high : range.low;
  if (range.high == -range.low) {
    extreme = 0;
    for (int i = 0; i < 32 && extreme == 0; ++i)
      if (x[i] == range.low || x[i] == range.high) extreme = x[i];
    if (extreme == 0) extreme = 0.0f;  // not -0
  }
  float d = extreme / static_cast<float>(-half);
  const uint16_t bits = half_scale(&d);
  truncated_quants(x, 0.0f, inverse_or_zero(d), static_cast<float>(half) + 0.5f, 2 * half - 1, q);
  return bits;
}
KIMI_INLINE void plain_q4_0_block(const float* x, BlockQ4_0* block) {
  uint8_t q[32];
  store_u16(block->d, plain_symmetric(x, 8, q));
  pack_nibbles(q, block->qs);
}
KIMI_INLINE void plain_q5_0_block(const float* x, BlockQ5_0* block) {
  uint8_t q[32];
  store_u16(block->d, plain_symmetric(x, 16, q));
  pack_nibbles(q, block->qs);
  pack_fifth_bits(q, block->qh);
}

// With a minimum: the smallest element becomes 0 and the largest `most`.
KIMI_INLINE void plain_offset(const float* x, int most, uint8_t* d_bytes, uint8_t* m_bytes, uint8_t* q) {
  const Range range = range_of_32(x);
  float d = (range.high - range.low) / static_cast<float>(most), low = range.low;
  for (int i = 0; low == 0 && i < 32; ++i) {
    if (x[i] == 0) {
      low = x[i];  // the first of equal ones, for the sign of zero
      break;
    }
  }
  store_u16(d_bytes, half_scale(&d));
  store_u16(m_bytes, half_scale(&low));
  truncated_quants(x, low, inverse_or_zero(d), 0.5f, most, q);
}
KIMI_INLINE void plain_q4_1_block(const float* x, BlockQ4_1* block) {
  uint8_t q[32];
  plain_offset(x, 15, block->d, block->m, q);
  pack_nibbles(q, block->qs);
}
KIMI_INLINE void plain_q5_1_block(const float* x, BlockQ5_1* block) {
  uint8_t q[32];
  plain_offset(x, 31, block->d, block->m, q);
  pack_nibbles(q, block->qs);
  pack_fifth_bits(q, block->qh);
}

}  // namespace
}  // namespace kimi::quant
