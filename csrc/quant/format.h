// The table of tensor formats that are read: what the bytes of a row mean. Owns ids, block sizes and reference decoders;
// refuses to know files, threads and instruction sets.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace kimi::quant {

// The block formats: X(name, number in GGUF). Each has a header of its own, quant/<name>.h.
// clang-format off
#define KIMI_QUANT_TYPES(X)                                                          \
  X(Q4_0, 2) X(Q4_1, 3) X(Q5_0, 6) X(Q5_1, 7) X(Q8_0, 8)                             \
  X(Q2_K, 10) X(Q3_K, 11) X(Q4_K, 12) X(Q5_K, 13) X(Q6_K, 14)                        \
  X(IQ4_NL, 20) X(IQ4_XS, 23) X(MXFP4, 39)                                           \
  X(IQ3_XXS, 18) X(IQ3_S, 21) X(IQ2_XXS, 16) X(IQ2_XS, 17) X(IQ2_S, 22) X(IQ1_S, 19) \
  X(IQ1_M, 29) X(TQ1_0, 34) X(TQ2_0, 35)
// clang-format on

#define KIMI_ENUMERATOR(name, id) name = id,
enum class Type : uint32_t { F32 = 0, F16 = 1, BF16 = 30, KIMI_QUANT_TYPES(KIMI_ENUMERATOR) };
#undef KIMI_ENUMERATOR

// Tables indexed by Type have this many places.
#define KIMI_LARGER(name, id) largest = largest < id ? id : largest;
constexpr int kMaxTypes = [] {
  int largest = static_cast<int>(Type::BF16);
  KIMI_QUANT_TYPES(KIMI_LARGER)
  return largest + 1;
}();
#undef KIMI_LARGER

struct Format {
  Type type;
  const char* name;
  int block_elems;  // elements a block holds, along the row
  int block_bytes;
  // Reference decoder, bit-exact with the published formats: `n` elements (a multiple of block_elems) -> float.
  void (*decode)(const void* blocks, float* out, int64_t n) noexcept;

  bool is_float() const { return block_elems == 1; }
  int64_t row_bytes(int64_t n_elems) const { return n_elems / block_elems * block_bytes; }
};

std::span<const Format> formats();
const Format* find_format(uint32_t type_id);       // nullptr: not one that is read
const Format* find_format(std::string_view name);  // nullptr: there is none
const Format& format_of(Type type);
std::string format_names();  // of all, separated by spaces, for messages

}  // namespace kimi::quant
