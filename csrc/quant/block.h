// What every block format shares: byte access, the traits, and the decoder that is the same for all of them.
//
// A quantized format is defined once, by its `unpack`: a block becomes signed bytes and one scale (and minimum) per group,
//   value[i] = scale[i / group] * q[i] - min[i / group]
// and everything else (the reference decoder here, the int8 kernels in backend/cpu) is built upon that.
//
// This header and the format headers are included into code compiled for each instruction set: only static always_inline
// functions and constants of internal linkage, no std headers, plain loops that the compiler vectorizes under any flags.
// Blocks are structs of bytes, so that they may lie at any address (110 and 17 are odd strides).
#pragma once
#include <cstdint>

#include "base/f16.h"
#include "quant/format.h"

namespace kimi::quant {

// Block: the struct of bytes; elems: elements per block; group: elements per scale, 16 or 32; has_min: whether `unpack` fills
// `min`, and then no q is negative; reach: no |q| is larger (128: any byte).
template <Type type>
struct BlockTraits;

template <typename B, int n_elems, int group_elems, bool with_min, int largest_q = 128>
struct BlockTraitsOf {
  using Block = B;
  static constexpr int elems = n_elems;
  static constexpr int group = group_elems;
  static constexpr int groups = n_elems / group_elems;
  static constexpr bool has_min = with_min;
  static constexpr int reach = largest_q;
};

KIMI_INLINE uint16_t load_u16(const uint8_t* bytes) {
  uint16_t value;
  __builtin_memcpy(&value, bytes, 2);
  return value;
}
KIMI_INLINE uint32_t load_u32(const uint8_t* bytes) {
  uint32_t value;
  __builtin_memcpy(&value, bytes, 4);
  return value;
}
KIMI_INLINE float load_f16(const uint8_t* bytes) { return f32_from_f16(load_u16(bytes)); }

// 16 bytes side by side, for what the compiler does not see in a loop; any instruction set has them.
using Bytes = uint8_t __attribute__((vector_size(16)));

KIMI_INLINE Bytes load_bytes(const uint8_t* from) {
  Bytes value;
  __builtin_memcpy(&value, from, 16);
  return value;
}
KIMI_INLINE void store_bytes(int8_t* to, Bytes value) { __builtin_memcpy(to, &value, 16); }

// Bit i of `bits` -> byte i, 0 or 16: the fifth bit of sixteen quants.
KIMI_INLINE Bytes spread_fifth_bits(uint16_t bits) {
  using Halves = uint64_t __attribute__((vector_size(16)));
  const Halves repeated = {(bits & 255) * 0x0101010101010101u, (bits >> 8) * 0x0101010101010101u};
  const Halves one_bit_each = repeated & 0x8040201008040201u;
  return reinterpret_cast<Bytes>(((one_bit_each + 0x7f7f7f7f7f7f7f7fu) >> 3) & 0x1010101010101010u);
}

// table[index] for each byte; index 0..15.
KIMI_INLINE Bytes lookup(const int8_t* table, Bytes index) {
#ifdef __SSSE3__
  using Chars = char __attribute__((vector_size(16)));
  Chars values;
  __builtin_memcpy(&values, table, 16);
  return reinterpret_cast<Bytes>(__builtin_ia32_pshufb128(values, reinterpret_cast<Chars>(index)));
#else
  // Sum of the table's steps up to the index: byte comparisons instead of 16 loads.
  Bytes value = static_cast<uint8_t>(table[0]) + Bytes{};
  for (int i = 1; i < 16; ++i) {
    const Bytes reached = reinterpret_cast<Bytes>(index >= static_cast<uint8_t>(i) + Bytes{});
    value += reached & (static_cast<uint8_t>(table[i] - table[i - 1]) + Bytes{});
  }
  return value;
#endif
}

// Reference decoder of one block. Bit-exact with the published formats under any flags: a product d * sub_scale * q needs at
// most 11 + 12 significant bits (f16; sub-scale and quant together) and is exact in float, so that the only rounding is that
// of the subtraction, whether the compiler fuses it or not.
template <Type type>
KIMI_INLINE void decode_block(const typename BlockTraits<type>::Block& block, float* __restrict out) {
  using Traits = BlockTraits<type>;
  int8_t q[Traits::elems];
  float scale[Traits::groups], min[Traits::groups];
  unpack(block, q, scale, min);
  for (int g = 0; g < Traits::groups; ++g) {
    const int8_t* group_q = q + g * Traits::group;
    float* group_out = out + g * Traits::group;
    for (int i = 0; i < Traits::group; ++i) {
      const float product = scale[g] * static_cast<float>(group_q[i]);
      if constexpr (Traits::has_min) {
        group_out[i] = product - min[g];
      } else {
        group_out[i] = product;
      }
    }
  }
}

// A row of `n` elements, n a multiple of the block.
template <Type type>
KIMI_INLINE void decode_blocks(const void* blocks, float* out, int64_t n) {
  using Traits = BlockTraits<type>;
  const auto* block = static_cast<const typename Traits::Block*>(blocks);
  for (int64_t i = 0; i < n; i += Traits::elems) decode_block<type>(*block++, out + i);
}

}  // namespace kimi::quant
