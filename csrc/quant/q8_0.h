// Q8_0: 32 elements in 34 bytes, 8.5 bits each.
//
//   0        2                                                  34
//   +--------+---------------------------------------------------+
//   | d f16  | qs[32] signed                                     |
//   +--------+---------------------------------------------------+
//   value = d * q
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ8_0 {
  uint8_t d[2];
  int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34 && alignof(BlockQ8_0) == 1);
template <>
struct BlockTraits<Type::Q8_0> : BlockTraitsOf<BlockQ8_0, 32, 32, false> {};

// q in -128..127: a quantizer writes -127..127, a file may hold anything
KIMI_INLINE void unpack(const BlockQ8_0& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  scale[0] = load_f16(block.d);
  for (int j = 0; j < 32; ++j) q[j] = block.qs[j];
}

}  // namespace kimi::quant
