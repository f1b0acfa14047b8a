// IQ4_NL: 32 elements in 18 bytes, 4.5 bits each; a fixed table of 16 values instead of even steps.
//
//   0        2                                18
//   +--------+---------------------------------+
//   | d f16  | qs[16]                          |   byte j: low nibble = element j, high nibble = element j + 16
//   +--------+---------------------------------+
//   value = d * kIq4Values[nibble]
#pragma once
#include "quant/block.h"

namespace kimi::quant {

// Part of the file format: finer steps near zero, where weights are dense.
static constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct BlockIQ4_NL {
  uint8_t d[2];
  uint8_t qs[16];
};
static_assert(sizeof(BlockIQ4_NL) == 18 && alignof(BlockIQ4_NL) == 1);
template <>
struct BlockTraits<Type::IQ4_NL> : BlockTraitsOf<BlockIQ4_NL, 32, 32, false> {};

// q in -127..113
KIMI_INLINE void unpack(const BlockIQ4_NL& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  scale[0] = load_f16(block.d);
  const Bytes qs = load_bytes(block.qs);
  store_bytes(q, lookup(kIq4Values, qs & 15));
  store_bytes(q + 16, lookup(kIq4Values, qs >> 4));
}

}  // namespace kimi::quant
