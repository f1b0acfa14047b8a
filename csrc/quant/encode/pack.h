// Quants and sub-scales into the bits of a block: the other direction of each format's `unpack`. Takes quants as unsigned
// codes (zero point added) in the order of the row.
#pragma once
#include "quant/blocks.h"

namespace kimi::quant {
namespace {

// Codes of 32 elements, 4 bits each: element j low, element j + 16 high.
KIMI_INLINE void pack_nibbles(const uint8_t* q, uint8_t* qs) {
  for (int j = 0; j < 16; ++j) qs[j] = static_cast<uint8_t>((q[j] & 15) | (q[j + 16] << 4));
}
// Bit 4 of 32 codes, element i to bit i.
KIMI_INLINE void pack_fifth_bits(const uint8_t* q, uint8_t* qh) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(q[j] >> 4) << j;
  __builtin_memcpy(qh, &bits, 4);
}

KIMI_INLINE void pack_q2_k(const uint8_t* q, const uint8_t* scale, const uint8_t* min, BlockQ2_K* block) {
  for (int b = 0; b < 16; ++b) block->scales[b] = static_cast<uint8_t>(scale[b] | (min[b] << 4));
  for (int n = 0; n < 2; ++n) {
    const uint8_t* half = q + 128 * n;
    for (int l = 0; l < 32; ++l) {
      block->qs[32 * n + l] = static_cast<uint8_t>(half[l] | (half[32 + l] << 2) | (half[64 + l] << 4) | (half[96 + l] << 6));
    }
  }
}

// 6-bit scales and minimums as Q4_K and Q5_K hold them.
KIMI_INLINE void pack_q4_k_scales(const uint8_t* scale, const uint8_t* min, uint8_t* packed) {
  for (int j = 0; j < 4; ++j) {
    packed[j] = static_cast<uint8_t>(scale[j] | ((scale[4 + j] >> 4) << 6));
    packed[4 + j] = static_cast<uint8_t>(min[j] | ((min[4 + j] >> 4) << 6));
    packed[8 + j] = static_cast<uint8_t>((scale[4 + j] & 15) | ((min[4 + j] & 15) << 4));
  }
}
KIMI_INLINE void pack_low_nibbles_k(const uint8_t* q, uint8_t* qs) {
  for (int g = 0; g < 4; ++g) {
    for (int l = 0; l < 32; ++l) qs[32 * g + l] = static_cast<uint8_t>((q[64 * g + l] & 15) | (q[64 * g + 32 + l] << 4));
  }
}
KIMI_INLINE void pack_q4_k(const uint8_t* q, const uint8_t* scale, const uint8_t* min, BlockQ4_K* block) {
  pack_q4_k_scales(scale, min, block->scales);
  pack_low_nibbles_k(q, block->qs);
}
KIMI_INLINE void pack_q5_k(const uint8_t* q, const uint8_t* scale, const uint8_t* min, BlockQ5_K* block) {
  pack_q4_k_scales(scale, min, block->scales);
  pack_low_nibbles_k(q, block->qs);
  for (int l = 0; l < 32; ++l) block->qh[l] = 0;
  for (int b = 0; b < 8; ++b) {
    for (int l = 0; l < 32; ++l) block->qh[l] = static_cast<uint8_t>(block->qh[l] | ((q[32 * b + l] >> 4) << b));
  }
}

// code = q + 4, scale code = scale + 32
KIMI_INLINE void pack_q3_k(const uint8_t* q, const uint8_t* scale, BlockQ3_K* block) {
  for (int b = 0; b < 8; ++b) block->scales[b] = static_cast<uint8_t>((scale[b] & 15) | ((scale[b + 8] & 15) << 4));
  for (int b = 0; b < 4; ++b) {
    block->scales[8 + b] = static_cast<uint8_t>((scale[b] >> 4) | ((scale[b + 4] >> 4) << 2) | ((scale[b + 8] >> 4) << 4) |
                                                ((scale[b + 12] >> 4) << 6));
  }
  for (int l = 0; l < 32; ++l) block->hmask[l] = 0;
  for (int n = 0; n < 2; ++n) {
    const uint8_t* half = q + 128 * n;
    for (int l = 0; l < 32; ++l) {
      block->qs[32 * n + l] =
          static_cast<uint8_t>((half[l] & 3) | ((half[32 + l] & 3) << 2) | ((half[64 + l] & 3) << 4) | ((half[96 + l] & 3) << 6));
      const int high = (half[l] >> 2) | ((half[32 + l] >> 2) << 1) | ((half[64 + l] >> 2) << 2) | ((half[96 + l] >> 2) << 3);
      block->hmask[l] = static_cast<uint8_t>(block->hmask[l] | (high << (4 * n)));
    }
  }
}

// code = q + 32, scale code = scale + 128
KIMI_INLINE void pack_q6_k(const uint8_t* q, const uint8_t* scale, BlockQ6_K* block) {
  for (int b = 0; b < 16; ++b) block->scales[b] = static_cast<int8_t>(scale[b] - 128);
  for (int n = 0; n < 2; ++n) {
    const uint8_t* half = q + 128 * n;
    for (int l = 0; l < 32; ++l) {
      block->ql[64 * n + l] = static_cast<uint8_t>((half[l] & 15) | (half[64 + l] << 4));
      block->ql[64 * n + 32 + l] = static_cast<uint8_t>((half[32 + l] & 15) | (half[96 + l] << 4));
      block->qh[32 * n + l] = static_cast<uint8_t>((half[l] >> 4) | ((half[32 + l] >> 4) << 2) | ((half[64 + l] >> 4) << 4) |
                                                   ((half[96 + l] >> 4) << 6));
    }
  }
}

// code = index into kIq4Values, scale code = scale + 32
KIMI_INLINE void pack_iq4_xs(const uint8_t* q, const uint8_t* scale, BlockIQ4_XS* block) {
  uint32_t high = 0;
  for (int b = 0; b < 8; ++b) high |= static_cast<uint32_t>(scale[b] >> 4) << (2 * b);
  block->scales_h[0] = static_cast<uint8_t>(high);
  block->scales_h[1] = static_cast<uint8_t>(high >> 8);
  for (int b = 0; b < 4; ++b) block->scales_l[b] = static_cast<uint8_t>((scale[2 * b] & 15) | ((scale[2 * b + 1] & 15) << 4));
  for (int b = 0; b < 8; ++b) pack_nibbles(q + 32 * b, block->qs + 16 * b);
}

}  // namespace
}  // namespace kimi::quant
