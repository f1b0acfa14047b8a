// IQ1_M: 256 elements in 56 bytes, 1.75 bits each; 16 groups of 16, the codebook and the shift of IQ1_S.
//
//   0            32           48               56
//   +------------+------------+-----------------+
//   | qs[32]     | qh[16]     | scales u16[4]   |
//   +------------+------------+-----------------+
//   nibble l of qh (low one first): bits 0 .. 2 above the eight of qs[l] = the point of elements 8 l .. 8 l + 7; bit 3 = whether
//   their shift is negative   (l < 32)
//   scales[b / 4]: bits 3 (b % 4) .. + 2 = scale of group b   (b < 16); bits 12 .. 15 of the four, lowest first = d f16
//   value = d * (2 * scale + 1) * (element +- 1/8)
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ1_M {
  uint8_t qs[32];
  uint8_t qh[16];
  uint8_t scales[8];
};
static_assert(sizeof(BlockIQ1_M) == 56 && alignof(BlockIQ1_M) == 1);
template <>
struct BlockTraits<Type::IQ1_M> : BlockTraitsOf<BlockIQ1_M, 256, 16, false, 9> {};

// q = 8 * element +- 1
KIMI_INLINE void unpack(const BlockIQ1_M& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  uint32_t d_bits = 0;
  for (int i = 0; i < 4; ++i) d_bits |= static_cast<uint32_t>(load_u16(block.scales + 2 * i) >> 12) << (4 * i);
  const float d = f32_from_f16(static_cast<uint16_t>(d_bits));
  for (int b = 0; b < 16; ++b) {
    const int levels = load_u16(block.scales + b / 4 * 2), high = block.qh[b];
    scale[b] = d * static_cast<float>(2 * ((levels >> (3 * (b % 4))) & 7) + 1) * 0.125f;
    const Halves points = {kIq1Codebook.points[block.qs[2 * b] | (high & 7) << 8],
                           kIq1Codebook.points[block.qs[2 * b + 1] | ((high >> 4) & 7) << 8]};
    store_bytes(q + 16 * b, shifted(points, Halves{eighths((high & 0x08) != 0), eighths((high & 0x80) != 0)}));
  }
}

}  // namespace kimi::quant
