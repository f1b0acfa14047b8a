#include "backend/cuda/repack.h"

#include <algorithm>
#include <cstring>

#include "backend/cuda/layout.h"
#include "base/error.h"
#include "quant/blocks.h"

namespace kimi::cuda {
namespace {

// ---- a block's scales, as they lie in the planes `scales` and `base` ---------------------------------------------------------
template <typename Block>
void write_scales(const Block& block, uint8_t* scales, uint8_t*) {  // one half
  std::memcpy(scales, block.d, 2);
}
template <typename Block>
void write_two_halves(const Block& block, uint8_t* scales) {
  std::memcpy(scales, block.d, 2);
  std::memcpy(scales + 2, block.m, 2);
}
void write_scales(const quant::BlockQ4_1& block, uint8_t* scales, uint8_t*) { write_two_halves(block, scales); }
void write_scales(const quant::BlockQ5_1& block, uint8_t* scales, uint8_t*) { write_two_halves(block, scales); }
void write_scales(const quant::BlockMXFP4& block, uint8_t* scales, uint8_t*) { *scales = block.e; }
void write_scales(const quant::BlockQ4_K& block, uint8_t* scales, uint8_t*) { std::memcpy(scales, &block, 16); }
void write_scales(const quant::BlockQ5_K& block, uint8_t* scales, uint8_t*) { std::memcpy(scales, &block, 16); }
void write_scales(const quant::BlockQ6_K& block, uint8_t* scales, uint8_t* base) {
  std::memcpy(scales, block.scales, 16);
  std::memcpy(base, block.d, 2);
}
void write_scales(const quant::BlockQ3_K& block, uint8_t* scales, uint8_t* base) {
  quant::q3_k_scales(block.scales, reinterpret_cast<int8_t*>(scales));
  std::memcpy(base, block.d, 2);
}
void write_scales(const quant::BlockIQ4_XS& block, uint8_t* scales, uint8_t* base) {
  quant::iq4_xs_scales(block, reinterpret_cast<int8_t*>(scales));
  std::memcpy(base, block.d, 2);
}
void write_scales(const quant::BlockQ2_K& block, uint8_t* scales, uint8_t* base) {
  std::memcpy(scales, block.scales, 16);
  std::memcpy(base, block.d, 2);
  std::memcpy(base + 2, block.dmin, 2);
}

// ---- quants ------------------------------------------------------------------------------------------------------------------
// The number that stands in a table for a value.
constexpr uint8_t index_in(const int8_t (&table)[16], int8_t value) {
  return static_cast<uint8_t>(std::find(table, table + 15, value) - table);
}

// 32 numbers below 4, two bits each.
void pack_two_bits(const uint8_t* q, uint8_t* out) {
  for (int w = 0; w < 2; ++w)
    for (int i = 0; i < 4; ++i)
      for (int m = 0; m < 4; ++m) out[4 * w + i] = static_cast<uint8_t>(out[4 * w + i] | (q[8 * m + 4 * w + i] & 3) << (2 * m));
}

void pack_group(const Layout& layout, const uint8_t* q, uint8_t* quants, uint8_t* high) {
  uint8_t above[32];
  const int low_bits = layout.quants / 4;
  if (layout.quants == 32) std::memcpy(quants, q, 32);
  for (int i = 0; layout.quants == 16 && i < 16; ++i) quants[i] = static_cast<uint8_t>((q[i] & 15) | (q[16 + i] & 15) << 4);
  if (layout.quants == 8) pack_two_bits(q, quants);
  for (int i = 0; i < 32; ++i) above[i] = static_cast<uint8_t>(q[i] >> std::min(low_bits, 7));
  for (int i = 0; layout.high == 4 && i < 32; ++i) high[i / 8] = static_cast<uint8_t>(high[i / 8] | (above[i] & 1) << (i % 8));
  if (layout.high == 8) pack_two_bits(above, high);
}

template <quant::Type type>
void repack_as(const Matrix& w, uint8_t* planes) {
  using Traits = quant::BlockTraits<type>;
  using Block = typename Traits::Block;
  constexpr Layout layout = layout_of_type<type>();
  static_assert(layout.block == Traits::elems && layout.group == Traits::group && layout.has_min == Traits::has_min);
  const PlaneOffsets at = plane_offsets(layout, w.rows, w.cols);
  const int64_t blocks = w.cols / Traits::elems;
  for (int64_t row = 0; row < w.rows; ++row) {
    const auto* from = reinterpret_cast<const Block*>(w.data + row * w.row_bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      int8_t q[Traits::elems];
      float scale[Traits::groups], min[Traits::groups] = {};
      unpack(from[b], q, scale, min);
      uint8_t stored[Traits::elems];
      for (int i = 0; i < Traits::elems; ++i) {
        if constexpr (layout.table == Table::iq4) {
          stored[i] = index_in(quant::kIq4Values, q[i]);
        } else if constexpr (layout.table == Table::e2m1) {
          stored[i] = index_in(quant::kE2m1Doubled, q[i]);
        } else {
          stored[i] = static_cast<uint8_t>(q[i] + layout.offset);
        }
      }
      const int64_t block = row * blocks + b;
      write_scales(from[b], planes + at.scales + block * layout.scales, planes + at.base + block * layout.base);
      for (int g = 0; g < Traits::elems / 32; ++g) {
        const int64_t group = block * (Traits::elems / 32) + g;
        pack_group(layout, stored + 32 * g, planes + group * layout.quants, planes + at.high + group * layout.high);
      }
    }
  }
}

}  // namespace

bool has_planes(quant::Type type) { return layout_of(type).quants != 0; }

int64_t plane_bytes(const Matrix& w) { return plane_offsets(layout_of(w.type), w.rows, w.cols).end; }

void repack(const Matrix& w, uint8_t* planes) {
  switch (w.type) {
#define KIMI_CASE(name)   \
  case quant::Type::name: \
    return repack_as<quant::Type::name>(w, planes);
    KIMI_CUDA_FORMATS(KIMI_CASE)
#undef KIMI_CASE
    default:
      KIMI_DCHECK(false);
  }
}

}  // namespace kimi::cuda
