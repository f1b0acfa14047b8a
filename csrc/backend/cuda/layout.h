// How quantized weights lie on the device: planes, such that every format is read in groups of 32 elements by aligned loads. The
// bits of the file's quants are kept; repack.cpp writes planes, kernels/groups.h reads them.
//
//   quants  the low bits of a group's elements, kQuants bytes:
//             16 bytes: byte i holds element i in its low nibble and element 16 + i in its high one
//              8 bytes: byte 4 w + i, bits 2 m .. 2 m + 1, is element 8 m + 4 w + i   (w < 2, i < 4, m < 4)
//             32 bytes: one after the other
//   high    the bits above them, kHigh bytes:
//              4 bytes: bit i is the top bit of element i
//              8 bytes: two bits of each, as in quants of 8 bytes
//   scales  kScales bytes for kBlock elements
//   base    kBase bytes for kBlock elements: what multiplies the scales of a block
// value[i] = scale * (q[i] - kOffset) - min, or scale * table[q[i]]
#pragma once
#include <cstdint>

#include "quant/format.h"

// Functions that kernels call as well.
#ifdef __CUDACC__
#define KIMI_HOST_DEVICE __host__ __device__
#else
#define KIMI_HOST_DEVICE
#endif

namespace kimi::cuda {

// How `scales` and `base` make the scale of a group.
enum class Scaling {
  half,           // f16 scale, and f16 minus-minimum where there is one
  power_of_two,   // the exponent of MXFP4
  packed_6_bits,  // Q4_K: f16 d and dmin, then 12 bytes
  bytes,          // signed bytes times f16 d
  nibbles         // Q2_K: low nibble times f16 d, high nibble times f16 dmin
};

enum class Table { none, iq4, e2m1 };

struct Layout {
  int quants, high, scales, base, block;
  int group;   // elements of a scale, 16 or 32
  int offset;  // that is taken from every q
  bool has_min;
  Scaling scaling;
  Table table;

  constexpr int bits() const { return quants / 4 + high / 4; }
};

template <quant::Type type>
KIMI_HOST_DEVICE constexpr Layout layout_of_type() {
  using enum quant::Type;
  using enum Scaling;
  switch (type) {
    case Q4_0:
      return {16, 0, 2, 0, 32, 32, 8, false, half, Table::none};
    case Q4_1:
      return {16, 0, 4, 0, 32, 32, 0, true, half, Table::none};
    case Q5_0:
      return {16, 4, 2, 0, 32, 32, 16, false, half, Table::none};
    case Q5_1:
      return {16, 4, 4, 0, 32, 32, 0, true, half, Table::none};
    case Q8_0:
      return {32, 0, 2, 0, 32, 32, 0, false, half, Table::none};
    case Q2_K:
      return {8, 0, 16, 4, 256, 16, 0, true, nibbles, Table::none};
    case Q3_K:
      return {8, 4, 16, 2, 256, 16, 4, false, bytes, Table::none};
    case Q4_K:
      return {16, 0, 16, 0, 256, 32, 0, true, packed_6_bits, Table::none};
    case Q5_K:
      return {16, 4, 16, 0, 256, 32, 0, true, packed_6_bits, Table::none};
    case Q6_K:
      return {16, 8, 16, 2, 256, 16, 32, false, bytes, Table::none};
    case IQ4_NL:
      return {16, 0, 2, 0, 32, 32, 0, false, half, Table::iq4};
    case IQ4_XS:
      return {16, 0, 8, 2, 256, 32, 0, false, bytes, Table::iq4};
    case MXFP4:
      return {16, 0, 1, 0, 32, 32, 0, false, power_of_two, Table::e2m1};
    default:
      return {};
  }
}

// The formats that have planes.
// clang-format off
#define KIMI_CUDA_FORMATS(X) \
  X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_NL) X(IQ4_XS) X(MXFP4)
// clang-format on

inline Layout layout_of(quant::Type type) {
  switch (type) {
#define KIMI_CASE(name)   \
  case quant::Type::name: \
    return layout_of_type<quant::Type::name>();
    KIMI_CUDA_FORMATS(KIMI_CASE)
#undef KIMI_CASE
    default:
      return {};
  }
}

// Where the planes of one matrix begin, in bytes. Rows of a plane lie one after the other.
struct PlaneOffsets {
  int64_t high, scales, base, end;
};
KIMI_HOST_DEVICE constexpr PlaneOffsets plane_offsets(const Layout& layout, int64_t rows, int64_t cols) {
  const auto aligned = [](int64_t bytes) { return (bytes + 15) / 16 * 16; };
  const int64_t groups = rows * (cols / 32), blocks = rows * (cols / layout.block);
  PlaneOffsets at{};
  at.high = aligned(groups * layout.quants);
  at.scales = at.high + aligned(groups * layout.high);
  at.base = at.scales + aligned(blocks * layout.scales);
  at.end = at.base + aligned(blocks * layout.base);
  return at;
}

}  // namespace kimi::cuda
