// IQ4_XS: 256 elements in 136 bytes, 4.25 bits each; 8 groups of 32 with the table of IQ4_NL.
//
//   0        2             4             8                              136
//   +--------+-------------+-------------+-------------------------------+
//   | d f16  | scales_h u16| scales_l[4] | qs[128]                       |
//   +--------+-------------+-------------+-------------------------------+
//   scale of group b, 6 bits minus 32: bits 0..3 in scales_l[b / 2] (low nibble for even b), bits 4..5 in scales_h, bits 2b..2b+1
//   qs[16 b + j]: low nibble = element 32 b + j, high nibble = element 32 b + 16 + j   (b < 8, j < 16)
//   value = d * scale * kIq4Values[nibble]
#pragma once
#include "quant/iq4_nl.h"

namespace kimi::quant {

struct BlockIQ4_XS {
  uint8_t d[2];
  uint8_t scales_h[2];
  uint8_t scales_l[4];
  uint8_t qs[128];
};
static_assert(sizeof(BlockIQ4_XS) == 136 && alignof(BlockIQ4_XS) == 1);
template <>
struct BlockTraits<Type::IQ4_XS> : BlockTraitsOf<BlockIQ4_XS, 256, 32, false> {};

// The 8 sub-scales, -32..31.
KIMI_INLINE void iq4_xs_scales(const BlockIQ4_XS& block, int8_t* __restrict out) {
  const int scales_h = load_u16(block.scales_h);
  for (int b = 0; b < 8; ++b) {
    const int low = (block.scales_l[b >> 1] >> (4 * (b & 1))) & 15;
    out[b] = static_cast<int8_t>((low | (((scales_h >> (2 * b)) & 3) << 4)) - 32);
  }
}

// q in -127..113
KIMI_INLINE void unpack(const BlockIQ4_XS& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  int8_t sub_scale[8];
  iq4_xs_scales(block, sub_scale);
  for (int b = 0; b < 8; ++b) {
    scale[b] = d * static_cast<float>(sub_scale[b]);
    const Bytes qs = load_bytes(block.qs + 16 * b);
    store_bytes(q + 32 * b, lookup(kIq4Values, qs & 15));
    store_bytes(q + 32 * b + 16, lookup(kIq4Values, qs >> 4));
  }
}

}  // namespace kimi::quant
