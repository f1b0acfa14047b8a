// Q4_K: 256 elements in 144 bytes, 4.5 bits each; 8 groups of 32.
//
//   0        2          4            16                             144
//   +--------+----------+------------+-------------------------------+
//   | d f16  | dmin f16 | scales[12] | qs[128]                       |
//   +--------+----------+------------+-------------------------------+
//   scales, 6 bits each:  byte:      0..3          4..7          8..11
//                         bits 0..5  scale j       min j         low nibble: scale 4+j, bits 0..3; high: min 4+j, bits 0..3
//                         bits 6..7  scale 4+j,    min 4+j,
//                                    bits 4..5     bits 4..5
//   qs[32 g + l]: low nibble = element 64 g + l, high nibble = element 64 g + 32 + l   (g < 4, l < 32)
//   value = d * scale * q - dmin * min
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ4_K {
  uint8_t d[2];
  uint8_t dmin[2];
  uint8_t scales[12];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ4_K) == 144 && alignof(BlockQ4_K) == 1);
template <>
struct BlockTraits<Type::Q4_K> : BlockTraitsOf<BlockQ4_K, 256, 32, true> {};

// The 8 sub-scales and 8 minimums of Q4_K and Q5_K, 0..63, as 16 consecutive bytes: scales, then minimums.
KIMI_INLINE void q4_k_scales(const uint8_t* packed, uint8_t* __restrict out) {
  uint32_t first, second, third;
  __builtin_memcpy(&first, packed, 4);
  __builtin_memcpy(&second, packed + 4, 4);
  __builtin_memcpy(&third, packed + 8, 4);
  const uint32_t words[4] = {
      first & 0x3f3f3f3f,
      (third & 0x0f0f0f0f) | ((first >> 2) & 0x30303030),
      second & 0x3f3f3f3f,
      ((third >> 4) & 0x0f0f0f0f) | ((second >> 2) & 0x30303030),
  };
  __builtin_memcpy(out, words, 16);
}

// q in 0..15
KIMI_INLINE void unpack(const BlockQ4_K& block, int8_t* __restrict q, float* __restrict scale, float* __restrict min) {
  const float d = load_f16(block.d), dmin = load_f16(block.dmin);
  uint8_t sub[16];
  q4_k_scales(block.scales, sub);
  for (int b = 0; b < 8; ++b) {
    scale[b] = d * static_cast<float>(sub[b]);
    min[b] = dmin * static_cast<float>(sub[8 + b]);
  }
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      q[64 * g + l] = static_cast<int8_t>(block.qs[32 * g + l] & 15);
      q[64 * g + 32 + l] = static_cast<int8_t>(block.qs[32 * g + l] >> 4);
    }
  }
}

}  // namespace kimi::quant
