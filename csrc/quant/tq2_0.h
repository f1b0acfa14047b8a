// TQ2_0: 256 elements of {-1, 0, 1} in 66 bytes, 2.0625 bits each; one scale.
//
//   0                      64       66
//   +----------------------+--------+
//   | qs[64]               | d f16  |
//   +----------------------+--------+
//   qs[32 n + l], bits 2 j .. 2 j + 1: element 128 n + 32 j + l   (n < 2, j < 4, l < 32)
//   value = d * (bits - 1)
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockTQ2_0 {
  uint8_t qs[64];
  uint8_t d[2];
};
static_assert(sizeof(BlockTQ2_0) == 66 && alignof(BlockTQ2_0) == 1);
template <>
struct BlockTraits<Type::TQ2_0> : BlockTraitsOf<BlockTQ2_0, 256, 32, false, 2> {};

// q in -1..2: writers leave 2 out, readers do not.
KIMI_INLINE void unpack(const BlockTQ2_0& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  for (int b = 0; b < 8; ++b) scale[b] = d;
  for (int n = 0; n < 2; ++n) {
    for (int j = 0; j < 4; ++j) {
      for (int l = 0; l < 32; ++l) q[128 * n + 32 * j + l] = static_cast<int8_t>(((block.qs[32 * n + l] >> (2 * j)) & 3) - 1);
    }
  }
}

}  // namespace kimi::quant
