// Q4_0: 32 elements in 18 bytes, 4.5 bits each.
//
//   0        2                                18
//   +--------+---------------------------------+
//   | d f16  | qs[16]                          |   byte j: low nibble = element j, high nibble = element j + 16
//   +--------+---------------------------------+
//   value = d * (nibble - 8)
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ4_0 {
  uint8_t d[2];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_0) == 18 && alignof(BlockQ4_0) == 1);
template <>
struct BlockTraits<Type::Q4_0> : BlockTraitsOf<BlockQ4_0, 32, 32, false> {};

// q in -8..7
KIMI_INLINE void unpack(const BlockQ4_0& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  scale[0] = load_f16(block.d);
  for (int j = 0; j < 16; ++j) {
    q[j] = static_cast<int8_t>((block.qs[j] & 15) - 8);
    q[j + 16] = static_cast<int8_t>((block.qs[j] >> 4) - 8);
  }
}

}  // namespace kimi::quant
