// IQ2_XS: 256 elements in 74 bytes, 2.3125 bits each; 16 groups of 16, vectors of 8 magnitudes from a codebook of 512.
//
//   0        2                              66             74
//   +--------+-------------------------------+--------------+
//   | d f16  | qs u16[32]                    | scales[8]    |
//   +--------+-------------------------------+--------------+
//   qs[l]: bits 0 .. 8 = the point of elements 8 l .. 8 l + 7; bits 9 .. 15 = signs of the first seven, of which an even number
//   is negative   (l < 32) scales[b / 2]: low nibble for even b, high for odd   (b < 16) value = d * (scale + 1/2) / 4 * signed
//   magnitude
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ2_XS {
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_XS) == 74 && alignof(BlockIQ2_XS) == 1);
template <>
struct BlockTraits<Type::IQ2_XS> : BlockTraitsOf<BlockIQ2_XS, 256, 16, false, 43> {};

KIMI_INLINE void unpack(const BlockIQ2_XS& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  const uint64_t* points = kIq2XsCodebook.points;
  for (int b = 0; b < 16; ++b) {
    const uint32_t first = load_u16(block.qs + 4 * b), second = load_u16(block.qs + 4 * b + 2);
    scale[b] = d * static_cast<float>(2 * ((block.scales[b / 2] >> (4 * (b % 2))) & 15) + 1) * 0.125f;
    store_bytes(q + 16 * b,
                with_signs(points[first & 511], points[second & 511], even_signs(first >> 9) | even_signs(second >> 9) << 8));
  }
}

}  // namespace kimi::quant
