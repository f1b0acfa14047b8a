// MXFP4: 32 elements in 17 bytes, 4.25 bits each; 4-bit floats (e2m1) under a power of two (OCP microscaling formats 1.0).
//
//   0     1                                17
//   +-----+---------------------------------+
//   | e u8| qs[16]                          |   byte j: low nibble = element j, high nibble = element j + 16
//   +-----+---------------------------------+
//   value = 2^(e - 127) * e2m1 = 2^(e - 128) * kE2m1Doubled[nibble]
#pragma once
#include "quant/block.h"

namespace kimi::quant {

// Twice the e2m1 values 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, which makes them integers.
static constexpr int8_t kE2m1Doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

struct BlockMXFP4 {
  uint8_t e;
  uint8_t qs[16];
};
static_assert(sizeof(BlockMXFP4) == 17 && alignof(BlockMXFP4) == 1);
template <>
struct BlockTraits<Type::MXFP4> : BlockTraitsOf<BlockMXFP4, 32, 32, false> {};

// 2^(e - 128). The first two are subnormal; 255 (NaN in the OCP text) is 2^127, as the published decoders have it.
KIMI_INLINE float mxfp4_scale(uint8_t e) {
  const uint32_t exponent = e;
  return f32_from_bits(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
}

// q in -12..12
KIMI_INLINE void unpack(const BlockMXFP4& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  scale[0] = mxfp4_scale(block.e);
  const Bytes qs = load_bytes(block.qs);
  store_bytes(q, lookup(kE2m1Doubled, qs & 15));
  store_bytes(q + 16, lookup(kE2m1Doubled, qs >> 4));
}

}  // namespace kimi::quant
