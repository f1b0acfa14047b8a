// TQ1_0: 256 elements of {-1, 0, 1} in 54 bytes, 1.6875 bits each; five ternary digits in a byte, one scale.
//
//   0                    48        52       54
//   +--------------------+---------+--------+
//   | qs[48]             | qh[4]   | d f16  |
//   +--------------------+---------+--------+
//   a byte is a fraction of 256; its digit n is the integer part after multiplying the fraction by three n + 1 times
//   qs[l]: digit n = element 32 n + l         (n < 5, l < 32)
//   qs[32 + l]: digit n = element 160 + 16 n + l   (n < 5, l < 16)
//   qh[l]: digit n = element 240 + 4 n + l    (n < 4, l < 4)
//   value = d * (digit - 1)
#pragma once
#include "quant/block.h"

namespace kimi::quant {

struct BlockTQ1_0 {
  uint8_t qs[48];
  uint8_t qh[4];
  uint8_t d[2];
};
static_assert(sizeof(BlockTQ1_0) == 54 && alignof(BlockTQ1_0) == 1);
template <>
struct BlockTraits<Type::TQ1_0> : BlockTraitsOf<BlockTQ1_0, 256, 32, false, 1> {};

// Digit n of `bytes`, one after the other, to q + n * width.
template <int width, int n_digits>
KIMI_INLINE void ternary_digits(const uint8_t* bytes, int8_t* __restrict q) {
  uint8_t fraction[width];
  for (int l = 0; l < width; ++l) fraction[l] = bytes[l];
  for (int n = 0; n < n_digits; ++n) {
    for (int l = 0; l < width; ++l) {
      const int tripled = 3 * fraction[l];
      q[n * width + l] = static_cast<int8_t>((tripled >> 8) - 1);
      fraction[l] = static_cast<uint8_t>(tripled);
    }
  }
}

KIMI_INLINE void unpack(const BlockTQ1_0& block, int8_t* __restrict q, float* __restrict scale, float* __restrict) {
  const float d = load_f16(block.d);
  for (int b = 0; b < 8; ++b) scale[b] = d;
  ternary_digits<32, 5>(block.qs, q);
  ternary_digits<16, 5>(block.qs + 32, q + 160);
  ternary_digits<4, 4>(block.qh, q + 240);
}

}  // namespace kimi::quant
