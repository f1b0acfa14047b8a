// Q5_0: 32 elements in 22 bytes, 5.5 bits each.
//
//   0        2              6                                22
//   +--------+--------------+---------------------------------+
//   | d f16  | qh u32       | qs[16]                          |   byte j: low nibble = element j, high nibble = element j + 16
//   +--------+--------------+---------------------------------+   bit i of qh: bit 4 of element i
//   value = d * (q - 16)
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ5_0 {
  uint8_t d[2];
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_0) == 22 && alignof(BlockQ5_0) == 1);
template <>
struct BlockTraits<Type::Q5_0> : BlockTraitsOf<BlockQ5_0, 32, 32, false> {};

// q in -16..15
KIMI_INLINE void unpack(const BlockQ5_0& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  scale[0] = load_f16(block.d);
  const Bytes qs = load_bytes(block.qs);
  store_bytes(q, ((qs & 15) | spread_fifth_bits(load_u16(block.qh))) - 16);
  store_bytes(q + 16, ((qs >> 4) | spread_fifth_bits(load_u16(block.qh + 2))) - 16);
}

}  // namespace kimi::quant
