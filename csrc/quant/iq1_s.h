// IQ1_S: 256 elements in 50 bytes, 1.5625 bits each; 8 groups of 32, vectors of 8 from {-1, 0, 1} of a codebook of 2048, shifted
// by an eighth.
//
//   0        2            34                   50
//   +--------+------------+---------------------+
//   | d f16  | qs[32]     | qh u16[8]           |
//   +--------+------------+---------------------+
//   qs[4 b + j], with bits 3 j .. 3 j + 2 of qh[b] above its eight: the point of elements 32 b + 8 j .. + 7   (b < 8, j < 4)
//   qh[b]: bits 12 .. 14 = scale, bit 15 = whether the shift is negative
//   value = d * (2 * scale + 1) * (element +- 1/8)
#pragma once
#include "quant/codebook.h"

namespace kimi::quant {

struct BlockIQ1_S {
  uint8_t d[2];
  uint8_t qs[32];
  uint8_t qh[16];
};
static_assert(sizeof(BlockIQ1_S) == 50 && alignof(BlockIQ1_S) == 1);
template <>
struct BlockTraits<Type::IQ1_S> : BlockTraitsOf<BlockIQ1_S, 256, 32, false, 9> {};

// q = 8 * element +- 1
KIMI_INLINE void unpack(const BlockIQ1_S& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  for (int b = 0; b < 8; ++b) {
    const uint32_t high = load_u16(block.qh + 2 * b);
    scale[b] = d * static_cast<float>(2 * ((high >> 12) & 7) + 1) * 0.125f;
    const uint64_t shift = eighths((high & 0x8000) != 0);
    const auto point = [&](int j) { return kIq1Codebook.points[block.qs[4 * b + j] | ((high >> (3 * j)) & 7) << 8]; };
    store_bytes(q + 32 * b, shifted(Halves{point(0), point(1)}, Halves{shift, shift}));
    store_bytes(q + 32 * b + 16, shifted(Halves{point(2), point(3)}, Halves{shift, shift}));
  }
}

}  // namespace kimi::quant
