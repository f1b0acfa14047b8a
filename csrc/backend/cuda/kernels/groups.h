// Reads 32 elements of a quantized matrix from its planes (layout.h), as operands of dot4.
#pragma once
#include "backend/cuda/layout.h"
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

// One matrix on the device.
struct Planes {
  const uint8_t *quants, *high, *scales, *base;
};

// 32 elements: q[w] holds elements 4 w .. 4 w + 3. With scales of 16 elements there are two.
struct Group {
  uint32_t q[8];
  float scale[2], min[2];
};

// Bit i -> byte i, 0 or 1, for four bits.
__device__ __forceinline__ uint32_t spread_four_bits(uint32_t bits) { return ((bits & 15) * 0x00204081u) & 0x01010101u; }

// Values of a table of 16 bytes for the eight nibbles of a word: of the low ones, and of the high ones.
__device__ __forceinline__ void look_up(const uint32_t (&table)[4], uint32_t nibbles, uint32_t* low, uint32_t* high) {
  uint32_t four[2];
  const uint32_t upper_half = 0x32103210u | (nibbles & 0x88888888u) >> 1;
  KIMI_UNROLL
  for (int i = 0; i < 2; ++i) {
    const uint32_t index = nibbles >> (16 * i);
    four[i] =
        choose_bytes(choose_bytes(table[0], table[1], index), choose_bytes(table[2], table[3], index), upper_half >> (16 * i));
  }
  *low = choose_bytes(four[0], four[1], 0x6420);
  *high = choose_bytes(four[0], four[1], 0x7531);
}

__device__ __forceinline__ uint32_t byte_of(const uint4& words, int i) {
  const uint32_t word = i < 4 ? words.x : i < 8 ? words.y : i < 12 ? words.z : words.w;
  return word >> (8 * (i % 4)) & 255;
}
__device__ __forceinline__ float low_half(uint32_t word) { return float_from_f16(static_cast<uint16_t>(word & 0xffff)); }
__device__ __forceinline__ float high_half(uint32_t word) { return float_from_f16(static_cast<uint16_t>(word >> 16)); }
__device__ __forceinline__ uint32_t load_16(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }
__device__ __forceinline__ uint32_t load_32(const uint8_t* p) { return *reinterpret_cast<const uint32_t*>(p); }

// index: of the group in the matrix
template <quant::Type type>
__device__ __forceinline__ void load_quants(const Planes& planes, int64_t index, uint32_t (&q)[8]) {
  constexpr Layout layout = layout_of_type<type>();
  const uint8_t* quants = planes.quants + index * layout.quants;
  if constexpr (layout.quants == 32) {
    const uint4 a = load_weights(quants), b = load_weights(quants + 16);
    q[0] = a.x, q[1] = a.y, q[2] = a.z, q[3] = a.w;
    q[4] = b.x, q[5] = b.y, q[6] = b.z, q[7] = b.w;
  } else if constexpr (layout.quants == 16) {
    const uint4 v = load_weights(quants);
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    if constexpr (layout.table == Table::none) {
      KIMI_UNROLL
      for (int i = 0; i < 4; ++i) {
        q[i] = words[i] & 0x0f0f0f0fu;
        q[4 + i] = words[i] >> 4 & 0x0f0f0f0fu;
      }
    } else {
      constexpr bool iq4 = layout.table == Table::iq4;  // the bytes of kIq4Values and of kE2m1Doubled
      const uint32_t table[4] = {iq4 ? 0xbfad9881u : 0x03020100u, iq4 ? 0xf6eaddcfu : 0x0c080604u,
                                 iq4 ? 0x26190d01u : 0xfdfeff00u, iq4 ? 0x71594535u : 0xf4f8fafcu};
      KIMI_UNROLL
      for (int i = 0; i < 4; ++i) look_up(table, words[i], &q[i], &q[4 + i]);
    }
  } else {
    const uint2 v = *reinterpret_cast<const uint2*>(quants);
    KIMI_UNROLL
    for (int m = 0; m < 4; ++m) {
      q[2 * m] = v.x >> (2 * m) & 0x03030303u;
      q[2 * m + 1] = v.y >> (2 * m) & 0x03030303u;
    }
  }
  if constexpr (layout.high == 4) {
    const uint32_t bits = load_32(planes.high + index * 4);
    KIMI_UNROLL
    for (int i = 0; i < 8; ++i) q[i] |= spread_four_bits(bits >> (4 * i)) << (layout.quants / 4);
  } else if constexpr (layout.high == 8) {
    const uint2 v = *reinterpret_cast<const uint2*>(planes.high + index * 8);
    KIMI_UNROLL
    for (int m = 0; m < 4; ++m) {
      q[2 * m] |= (v.x >> (2 * m) & 0x03030303u) << 4;
      q[2 * m + 1] |= (v.y >> (2 * m) & 0x03030303u) << 4;
    }
  }
}

template <quant::Type type>
__device__ __forceinline__ void load_scales(const Planes& planes, int64_t index, float (&scale)[2], float (&min)[2]) {
  constexpr Layout layout = layout_of_type<type>();
  constexpr int per_block = layout.block / 32;
  const int64_t block = index / per_block;
  const int sub = static_cast<int>(index % per_block);
  const uint8_t* scales = planes.scales + block * layout.scales;
  min[0] = min[1] = 0.0f;
  if constexpr (layout.scaling == Scaling::half) {
    if constexpr (layout.has_min) {
      const uint32_t both = load_32(scales);
      scale[0] = low_half(both);
      min[0] = -high_half(both);
    } else {
      scale[0] = low_half(load_16(scales));
    }
  } else if constexpr (layout.scaling == Scaling::power_of_two) {
    const uint32_t exponent = *scales;  // 2^(exponent - 128)
    scale[0] = float_from_bits(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23);
  } else if constexpr (layout.scaling == Scaling::packed_6_bits) {
    const uint4 header = load_weights(scales);
    const uint32_t first = byte_of(header, 4 + sub % 4), second = byte_of(header, 8 + sub % 4),
                   third = byte_of(header, 12 + sub % 4);
    const uint32_t s = sub < 4 ? first & 63 : (third & 15) | first >> 6 << 4;
    const uint32_t m = sub < 4 ? second & 63 : third >> 4 | second >> 6 << 4;
    scale[0] = low_half(header.x) * static_cast<float>(s);
    min[0] = high_half(header.x) * static_cast<float>(m);
  } else if constexpr (layout.scaling == Scaling::bytes) {
    const float d = low_half(load_16(planes.base + block * 2));
    if constexpr (layout.group == 16) {
      const uint32_t two = load_16(scales + 2 * sub);
      scale[0] = d * static_cast<float>(static_cast<int8_t>(two & 255));
      scale[1] = d * static_cast<float>(static_cast<int8_t>(two >> 8));
    } else {
      scale[0] = d * static_cast<float>(static_cast<int8_t>(scales[sub]));
    }
  } else {
    const uint32_t both = load_32(planes.base + block * 4), two = load_16(scales + 2 * sub);
    scale[0] = low_half(both) * static_cast<float>(two & 15);
    scale[1] = low_half(both) * static_cast<float>(two >> 8 & 15);
    min[0] = high_half(both) * static_cast<float>(two >> 4 & 15);
    min[1] = high_half(both) * static_cast<float>(two >> 12);
  }
  if constexpr (layout.group == 32) scale[1] = scale[0], min[1] = min[0];
}

template <quant::Type type>
__device__ __forceinline__ Group load_group(const Planes& planes, int64_t index) {
  Group group;
  load_quants<type>(planes, index, group.q);
  load_scales<type>(planes, index, group.scale, group.min);
  return group;
}

}  // namespace kimi::cuda
