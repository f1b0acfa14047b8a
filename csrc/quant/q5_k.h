// Q5_K: 256 elements in 176 bytes, 5.5 bits each; 8 groups of 32.
//
//   0        2          4            16       48                         176
//   +--------+----------+------------+--------+---------------------------+
//   | d f16  | dmin f16 | scales[12] | qh[32] | qs[128]                   |
//   +--------+----------+------------+--------+---------------------------+
//   scales: as in Q4_K
//   qs[32 g + l]: low nibble = element 64 g + l, high nibble = element 64 g + 32 + l   (g < 4, l < 32)
//   qh[l], bit b: bit 4 of element 32 b + l
//   value = d * scale * q - dmin * min
#pragma once
#include "quant/q4_k.h"

namespace kimi::quant {

struct BlockQ5_K {
  uint8_t d[2];
  uint8_t dmin[2];
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176 && alignof(BlockQ5_K) == 1);
template <>
struct BlockTraits<Type::Q5_K> : BlockTraitsOf<BlockQ5_K, 256, 32, true> {};

// q in 0..31
KIMI_INLINE void unpack(const BlockQ5_K& block, int8_t* __restrict q, float* __restrict scale, float* __restrict min) {
  const float d = load_f16(block.d), dmin = load_f16(block.dmin);
  uint8_t sub[16];
  q4_k_scales(block.scales, sub);
  for (int b = 0; b < 8; ++b) {
    scale[b] = d * static_cast<float>(sub[b]);
    min[b] = dmin * static_cast<float>(sub[8 + b]);
  }
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) {
      const uint8_t high = static_cast<uint8_t>(block.qh[l] >> (2 * g));
      q[64 * g + l] = static_cast<int8_t>((block.qs[32 * g + l] & 15) | ((high & 1) << 4));
      q[64 * g + 32 + l] = static_cast<int8_t>((block.qs[32 * g + l] >> 4) | ((high & 2) << 3));
    }
  }
}

}  // namespace kimi::quant
