// IEEE half and bfloat16 <-> float, bit-exact and branch-light; usable from code compiled for any ISA.
#pragma once
#include <cstdint>
#include <cstring>

#define KIMI_INLINE static inline __attribute__((always_inline))

namespace kimi {

KIMI_INLINE float f32_from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
KIMI_INLINE uint32_t f32_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

KIMI_INLINE float f32_from_bf16(uint16_t h) { return f32_from_bits(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN stays NaN.
KIMI_INLINE uint16_t bf16_from_f32(float value) {
  const uint32_t u = f32_to_bits(value);
  if ((u & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((u >> 16) | 64);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

KIMI_INLINE float f32_from_f16(uint16_t h) {
#ifdef __F16C__
  return __builtin_ia32_vcvtph2ps(
      __extension__(__attribute__((vector_size(16))) short){static_cast<short>(h), 0, 0, 0, 0, 0, 0, 0})[0];
#else
  // Shift exponent and mantissa into place, then correct the exponent by a multiplication, which also handles subnormals.
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  if ((h & 0x7c00) == 0x7c00) return f32_from_bits(sign | 0x7f800000 | magnitude);
  const float scaled = f32_from_bits(magnitude) * 0x1p112f;
  return f32_from_bits(sign | f32_to_bits(scaled));
#endif
}

// Round to nearest even, as the hardware does.
KIMI_INLINE uint16_t f16_from_f32(float value) {
  const uint32_t u = f32_to_bits(value), sign = (u >> 16) & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (a >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds to 65536 or more
  if (a < 0x38800000) {                                              // subnormal: let the adder round
    const float shifted = f32_from_bits(a) + 0.5f;
    return static_cast<uint16_t>(sign | (f32_to_bits(shifted) - 0x3f000000));
  }
  const uint32_t rounded = a + 0xfff + ((a >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

}  // namespace kimi
