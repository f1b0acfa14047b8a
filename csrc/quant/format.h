// The table of tensor formats: what the bytes of a row mean. Owns ids, block sizes and reference decoders;
// refuses to know files, threads and instruction sets.
#pragma once
#include <cstdint>
#include <span>
#include <string_view>

namespace kimi::quant {

// Numbers are GGUF's.
enum class Type : uint32_t {
  F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q5_0 = 6, Q5_1 = 7, Q8_0 = 8, Q2_K = 10, Q3_K = 11, Q4_K = 12, Q5_K = 13,
  Q6_K = 14, IQ4_NL = 20, IQ4_XS = 23, BF16 = 30, MXFP4 = 39,
};

// `n` elements of a row -> blocks; importance: what an error in each column weighs (finite, not negative), or nullptr. All
// elements finite. The published format leaves the choice of quants to the encoder: see encode.h.
using RowEncoder = void (*)(const float* row, const float* importance, void* blocks, int64_t n) noexcept;

struct Format {
  Type type;
  const char* name;
  int block_elems;  // elements a block holds, along the row
  int block_bytes;
  // Reference decoder, bit-exact with the published formats: `n` elements (a multiple of block_elems) -> float.
  void (*decode)(const void* blocks, float* out, int64_t n) noexcept;
  RowEncoder encode;  // with the widest instruction set of this processor

  bool is_float() const { return block_elems == 1; }
  int64_t row_bytes(int64_t n_elems) const { return n_elems / block_elems * block_bytes; }
};

std::span<const Format> formats();
const Format* find_format(uint32_t type_id);            // nullptr: not one that we read
const Format& format_of(Type type);
const char* type_name(uint32_t type_id);                // of any type that GGUF defines ("IQ2_XXS"), or "unknown"

}  // namespace kimi::quant
