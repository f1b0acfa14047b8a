// IQ2_S: 256 elements in 82 bytes, 2.5625 bits each; 16 groups of 16, vectors of 8 magnitudes from a codebook of 1024.
//
//   0        2            34             66         74           82
//   +--------+------------+--------------+----------+------------+
//   | d f16  | qs[32]     | signs[32]    | qh[8]    | scales[8]  |
//   +--------+------------+--------------+----------+------------+
//   qs[l], with bits 2 (l % 4) and one more of qh[l / 4] above its eight: the point of elements 8 l .. 8 l + 7   (l < 32)
//   signs[l]: bit i = sign of element 8 l + i
//   scales[b / 2]: low nibble for even b, high for odd   (b < 16)
//   value = d * (scale + 1/2) / 4 * signed magnitude
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ2_S {
  uint8_t d[2];
  uint8_t qs[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_S) == 82 && alignof(BlockIQ2_S) == 1);
template <>
struct BlockTraits<Type::IQ2_S> : BlockTraitsOf<BlockIQ2_S, 256, 16, false, 43> {};

KIMI_INLINE void unpack(const BlockIQ2_S& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  const auto point = [&](int l) { return kIq2SCodebook.points[block.qs[l] | ((block.qh[l / 4] >> (2 * (l % 4))) & 3) << 8]; };
  for (int b = 0; b < 16; ++b) {
    scale[b] = d * static_cast<float>(2 * ((block.scales[b / 2] >> (4 * (b % 2))) & 15) + 1) * 0.125f;
    store_bytes(q + 16 * b, with_signs(point(2 * b), point(2 * b + 1), load_u16(block.signs + 2 * b)));
  }
}

}  // namespace kimi::quant
