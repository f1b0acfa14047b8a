// Q5_1: 32 elements in 24 bytes, 6 bits each.
//
//   0        2        4              8                                24
//   +--------+--------+--------------+---------------------------------+
//   | d f16  | m f16  | qh u32       | qs[16]                          |   byte j: low nibble = element j, high = element j + 16
//   +--------+--------+--------------+---------------------------------+   bit i of qh: bit 4 of element i
//   value = d * q + m
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockQ5_1 {
  uint8_t d[2];
  uint8_t m[2];
  uint8_t qh[4];
  uint8_t qs[16];
};
static_assert(sizeof(BlockQ5_1) == 24 && alignof(BlockQ5_1) == 1);
template <>
struct BlockTraits<Type::Q5_1> : BlockTraitsOf<BlockQ5_1, 32, 32, true> {};

// q in 0..31; min = -m
KIMI_INLINE void unpack(const BlockQ5_1& block, int8_t* __restrict q, float* __restrict scale, float* __restrict min) {
  scale[0] = load_f16(block.d);
  min[0] = -load_f16(block.m);
  const Bytes qs = load_bytes(block.qs);
  store_bytes(q, ((qs & 15) | spread_fifth_bits(load_u16(block.qh))));
  store_bytes(q + 16, ((qs >> 4) | spread_fifth_bits(load_u16(block.qh + 2))));
}

}  // namespace kimi::quant
