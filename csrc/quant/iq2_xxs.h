// IQ2_XXS: 256 elements in 66 bytes, 2.0625 bits each; 8 groups of 32, vectors of 8 magnitudes from a codebook of 256.
//
//   0        2                                       66
//   +--------+----------------------------------------+
//   | d f16  | 8 groups of { points[4], word u32 }    |
//   +--------+----------------------------------------+
//   points[j]: the point of elements 32 b + 8 j .. + 7   (b < 8, j < 4)
//   word: bits 7 j .. 7 j + 6 = signs of the first seven of these, of which an even number is negative; bits 28 .. 31 = scale
//   value = d * (scale + 1/2) / 4 * signed magnitude
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ2_XXS {
  uint8_t d[2];
  uint8_t qs[64];
};
static_assert(sizeof(BlockIQ2_XXS) == 66 && alignof(BlockIQ2_XXS) == 1);
template <>
struct BlockTraits<Type::IQ2_XXS> : BlockTraitsOf<BlockIQ2_XXS, 256, 32, false, 43> {};

KIMI_INLINE void unpack(const BlockIQ2_XXS& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  const uint64_t* points = kIq2XxsCodebook.points;
  for (int b = 0; b < 8; ++b) {
    const uint8_t* qs = block.qs + 8 * b;
    const uint32_t word = load_u32(qs + 4);
    scale[b] = d * static_cast<float>(2 * (word >> 28) + 1) * 0.125f;
    store_bytes(q + 32 * b, with_signs(points[qs[0]], points[qs[1]], even_signs(word) | even_signs(word >> 7) << 8));
    store_bytes(q + 32 * b + 16, with_signs(points[qs[2]], points[qs[3]], even_signs(word >> 14) | even_signs(word >> 21) << 8));
  }
}

}  // namespace kimi::quant
