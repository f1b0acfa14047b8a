// Q3_K: 256 elements in 110 bytes, 3.4375 bits each; 16 groups of 16.
//
//   0           32                        96           108      110
//   +-----------+-------------------------+------------+--------+
//   | hmask[32] | qs[64]                  | scales[12] | d f16  |
//   +-----------+-------------------------+------------+--------+
//   qs[32 n + l], bits 2j..2j+1: low bits of element 128 n + 32 j + l   (n < 2, j < 4, l < 32)
//   hmask[l], bit 4 n + j: set = the element is not lowered by 4
//   scales: 6 bits of group b, minus 32: bits 0..3 in scales[b % 8] (low nibble for b < 8),
//           bits 4..5 in scales[8 + b % 4], bits 2 (b / 4) .. 2 (b / 4) + 1
//   value = d * scale * q
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t qs[64];
  uint8_t scales[12];
  uint8_t d[2];
};
static_assert(sizeof(BlockQ3_K) == 110 && alignof(BlockQ3_K) == 1);
template <>
struct BlockTraits<Type::Q3_K> : BlockTraitsOf<BlockQ3_K, 256, 16, false> {};

// The 16 sub-scales, -32..31.
KIMI_INLINE void q3_k_scales(const uint8_t* packed, int8_t* __restrict out) {
  for (int b = 0; b < 16; ++b) {
    const int low = (packed[b & 7] >> (b < 8 ? 0 : 4)) & 15;
    const int high = (packed[8 + (b & 3)] >> (2 * (b >> 2))) & 3;
    out[b] = static_cast<int8_t>((low | (high << 4)) - 32);
  }
}

// q in -4..3
KIMI_INLINE void unpack(const BlockQ3_K& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  int8_t sub_scale[16];
  q3_k_scales(block.scales, sub_scale);
  for (int b = 0; b < 16; ++b) scale[b] = d * static_cast<float>(sub_scale[b]);
  for (int n = 0; n < 2; ++n) {
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 32; ++l) {
        const int low = (block.qs[32 * n + l] >> (2 * j)) & 3;
        const int high = ((block.hmask[l] >> (4 * n + j)) & 1) << 2;
        q[128 * n + 32 * j + l] = static_cast<int8_t>((low | high) - 4);
      }
    }
  }
}

}  // namespace kimi::quant
