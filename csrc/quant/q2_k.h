// Q2_K: 256 elements in 84 bytes, 2.625 bits each; 16 groups of 16.
//
//   0            16                          80       82         84
//   +------------+---------------------------+--------+----------+
//   | scales[16] | qs[64]                    | d f16  | dmin f16 |
//   +------------+---------------------------+--------+----------+
//   scales[b]: low nibble = scale, high nibble = minimum of group b
//   qs[32 n + l], bits 2j..2j+1: element 128 n + 32 j + l   (n < 2, j < 4, l < 32)
//   value = d * scale * q - dmin * minimum
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t qs[64];
  uint8_t d[2];
  uint8_t dmin[2];
};
static_assert(sizeof(BlockQ2_K) == 84 && alignof(BlockQ2_K) == 1);
template <>
struct BlockTraits<Type::Q2_K> : BlockTraitsOf<BlockQ2_K, 256, 16, true> {};

// q in 0..3
KIMI_INLINE void unpack(const BlockQ2_K& block, int8_t* __restrict q, float* __restrict scale, float* __restrict min) {
  const float d = load_f16(block.d), dmin = load_f16(block.dmin);
  for (int b = 0; b < 16; ++b) {
    scale[b] = d * static_cast<float>(block.scales[b] & 15);
    min[b] = dmin * static_cast<float>(block.scales[b] >> 4);
  }
  for (int n = 0; n < 2; ++n) {
    for (int l = 0; l < 32; ++l) {
      const uint8_t bits = block.qs[32 * n + l];
      q[128 * n + l] = static_cast<int8_t>(bits & 3);
      q[128 * n + 32 + l] = static_cast<int8_t>((bits >> 2) & 3);
      q[128 * n + 64 + l] = static_cast<int8_t>((bits >> 4) & 3);
      q[128 * n + 96 + l] = static_cast<int8_t>(bits >> 6);
    }
  }
}

}  // namespace kimi::quant
