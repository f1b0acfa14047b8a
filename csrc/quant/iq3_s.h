// IQ3_S: 256 elements in 110 bytes, 3.4375 bits each; 8 groups of 32, vectors of 4 magnitudes from a codebook of 512.
//
//   0        2            66        74              106          110
//   +--------+------------+---------+---------------+-------------+
//   | d f16  | qs[64]     | qh[8]   | signs[32]     | scales[4]   |
//   +--------+------------+---------+---------------+-------------+
//   qs[8 b + i], with bit i of qh[b] as its ninth bit: the point of elements 32 b + 4 i .. + 3   (b < 8, i < 8)
//   signs[l]: bit i = sign of element 8 l + i
//   scales[b / 2]: low nibble for even b, high for odd
//   value = d * (2 * scale + 1) * signed magnitude
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ3_S {
  uint8_t d[2];
  uint8_t qs[64];
  uint8_t qh[8];
  uint8_t signs[32];
  uint8_t scales[4];
};
static_assert(sizeof(BlockIQ3_S) == 110 && alignof(BlockIQ3_S) == 1);
template <>
struct BlockTraits<Type::IQ3_S> : BlockTraitsOf<BlockIQ3_S, 256, 32, false, 15> {};

KIMI_INLINE void unpack(const BlockIQ3_S& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  for (int b = 0; b < 8; ++b) {
    scale[b] = d * static_cast<float>(2 * ((block.scales[b / 2] >> (4 * (b % 2))) & 15) + 1);
    const uint8_t* qs = block.qs + 8 * b;
    const int high = block.qh[b];
    const auto pair = [&](int i) {
      return kIq3SCodebook.points[qs[i] | ((high >> i) & 1) << 8] |
             static_cast<uint64_t>(kIq3SCodebook.points[qs[i + 1] | ((high >> (i + 1)) & 1) << 8]) << 32;
    };
    store_bytes(q + 32 * b, with_signs(pair(0), pair(2), load_u16(block.signs + 4 * b)));
    store_bytes(q + 32 * b + 16, with_signs(pair(4), pair(6), load_u16(block.signs + 4 * b + 2)));
  }
}

}  // namespace kimi::quant
