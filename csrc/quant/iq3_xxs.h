// IQ3_XXS: 256 elements in 98 bytes, 3.0625 bits each; 8 groups of 32, vectors of 4 magnitudes from a codebook of 256.
//
//   0        2                  66                        98
//   +--------+------------------+--------------------------+
//   | d f16  | qs[64]           | signs and scales, u32[8] |
//   +--------+------------------+--------------------------+
//   qs[8 b + i]: the point of elements 32 b + 4 i .. + 3   (b < 8, i < 8)
//   word b: bits 7 j .. 7 j + 6 = signs of the first seven of elements 32 b + 8 j .. + 7, of which an even number is negative
//   (j < 4); bits 28 .. 31 = scale
//   value = d * (scale + 1/2) / 2 * signed magnitude
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ3_XXS {
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t signs_and_scales[32];
};
static_assert(sizeof(BlockIQ3_XXS) == 98 && alignof(BlockIQ3_XXS) == 1);
template <>
struct BlockTraits<Type::IQ3_XXS> : BlockTraitsOf<BlockIQ3_XXS, 256, 32, false, 62> {};

KIMI_INLINE void unpack(const BlockIQ3_XXS& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  const auto pair = [](const uint8_t* qs) {
    return kIq3XxsCodebook.points[qs[0]] | static_cast<uint64_t>(kIq3XxsCodebook.points[qs[1]]) << 32;
  };
  for (int b = 0; b < 8; ++b) {
    const uint32_t word = load_u32(block.signs_and_scales + 4 * b);
    const uint8_t* qs = block.qs + 8 * b;
    scale[b] = d * static_cast<float>(2 * (word >> 28) + 1) * 0.25f;
    store_bytes(q + 32 * b, with_signs(pair(qs), pair(qs + 2), even_signs(word) | even_signs(word >> 7) << 8));
    store_bytes(q + 32 * b + 16, with_signs(pair(qs + 4), pair(qs + 6), even_signs(word >> 14) | even_signs(word >> 21) << 8));
  }
}

}  // namespace kimi::quant
