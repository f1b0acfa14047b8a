// Q4_1: 32 elements in 20 bytes, 5 bits each.
//
//   0        2        4                                20
//   +--------+--------+---------------------------------+
//   | d f16  | m f16  | qs[16]                          |   byte j: low nibble = element j, high nibble = element j + 16
//   +--------+--------+---------------------------------+
//   value = d * nibble + m
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ4_1 {
  uint8_t d[2];
  uint8_t m[2];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ4_1) == 20 && alignof(BlockQ4_1) == 1);
template <>
struct BlockTraits<Type::Q4_1> : BlockTraitsOf<BlockQ4_1, 32, 32, true> {};

// q in 0..15; min = -m
KIMI_INLINE void unpack(const BlockQ4_1& block, int8_t* __restrict q, float* __restrict scale, float* __restrict min) {
  scale[0] = load_f16(block.d);
  min[0] = -load_f16(block.m);
  for (int j = 0; j < 16; ++j) {
    q[j] = static_cast<int8_t>(block.qs[j] & 15);
    q[j + 16] = static_cast<int8_t>(block.qs[j] >> 4);
  }
}

}  // namespace kimi::quant
