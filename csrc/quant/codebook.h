// Codebooks of the IQ formats: an index in a block names a point, a vector of 8 (IQ1, IQ2) or 4 (IQ3) magnitudes. The points of
// a codebook are a set of numbers in ascending order, whose least significant digit is the first element; codebook.cpp holds the
// sets. Plain constants with external linkage, which carry no code of any instruction set.
#pragma once
#include "quant/block.h"

namespace kimi::quant {

template <int n, typename P>
struct Codebook {
  P points[n];  // bytes in the order of the elements
};
extern const Codebook<256, uint32_t> kIq3XxsCodebook;  // magnitudes 4 12 20 28 36 44 52 62
extern const Codebook<512, uint32_t> kIq3SCodebook;    // 1 3 5 7 9 11 13 15
extern const Codebook<256, uint64_t> kIq2XxsCodebook;  // 8 25 43
extern const Codebook<512, uint64_t> kIq2XsCodebook;   // 8 25 43
extern const Codebook<1024, uint64_t> kIq2SCodebook;   // 8 25 43
extern const Codebook<2048, uint64_t> kIq1Codebook;    // signed: -8 0 8

using Halves = uint64_t __attribute__((vector_size(16)));

// Seven sign bits and the eighth, which makes their number even.
KIMI_INLINE uint32_t even_signs(uint32_t seven) {
  return (seven & 127) | (static_cast<uint32_t>(__builtin_parity(seven & 127)) << 7);
}

// Sixteen magnitudes, element i negated where bit i of `signs` is set.
KIMI_INLINE Bytes with_signs(uint64_t first, uint64_t second, uint32_t signs) {
  const Bytes magnitudes = reinterpret_cast<Bytes>(Halves{first, second});
  const Halves repeated = {(signs & 255) * 0x0101010101010101u, ((signs >> 8) & 255) * 0x0101010101010101u};
  const Bytes negative = reinterpret_cast<Bytes>(reinterpret_cast<Bytes>(repeated & 0x8040201008040201u) != 0);
  return (magnitudes ^ negative) - negative;
}

// The shift of IQ1 in eighths, eight times: -1 or 1.
KIMI_INLINE uint64_t eighths(bool negative) { return negative ? ~uint64_t{0} : 0x0101010101010101u; }
KIMI_INLINE Bytes shifted(Halves points, Halves shifts) {
  return reinterpret_cast<Bytes>(points) + reinterpret_cast<Bytes>(shifts);
}

}  // namespace kimi::quant
