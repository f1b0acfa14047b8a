// Q6_K: 256 elements in 210 bytes, 6.5625 bits each; 16 groups of 16.
//
//   0                       128             192                  208      210
//   +-----------------------+---------------+--------------------+--------+
//   | ql[128]               | qh[64]        | scales[16] signed  | d f16  |
//   +-----------------------+---------------+--------------------+--------+
//   for n < 2, l < 32, element 128 n + 32 j + l:
//     j:            0                1                2                3
//     bits 0..3     ql[64n+l] low    ql[64n+32+l] low ql[64n+l] high   ql[64n+32+l] high
//     bits 4..5     qh[32n+l], bits 2j..2j+1
//   value = d * scale * (q - 32)
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint8_t d[2];
};
static_assert(sizeof(BlockQ6_K) == 210 && alignof(BlockQ6_K) == 1);
template <>
struct BlockTraits<Type::Q6_K> : BlockTraitsOf<BlockQ6_K, 256, 16, false> {};

// q in -32..31
KIMI_INLINE void unpack(const BlockQ6_K& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  for (int b = 0; b < 16; ++b) scale[b] = d * static_cast<float>(block.scales[b]);
  for (int n = 0; n < 2; ++n) {
    for (int l = 0; l < 32; ++l) {
      const uint8_t first = block.ql[64 * n + l], second = block.ql[64 * n + 32 + l], high = block.qh[32 * n + l];
      q[128 * n + l] = static_cast<int8_t>(((first & 15) | ((high & 3) << 4)) - 32);
      q[128 * n + 32 + l] = static_cast<int8_t>(((second & 15) | ((high & 12) << 2)) - 32);
      q[128 * n + 64 + l] = static_cast<int8_t>(((first >> 4) | (high & 48)) - 32);
      q[128 * n + 96 + l] = static_cast<int8_t>(((second >> 4) | ((high & 192) >> 2)) - 32);
    }
  }
}

}  // namespace kimi::quant
