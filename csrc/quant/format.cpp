// The table of formats and the names of all types that GGUF defines.
#include "quant/format.h"

#include <array>

#include "base/error.h"
#include "quant/blocks.h"
#include "quant/encode.h"

namespace kimi::quant {
namespace {

template <Type type>
void decode_row(const void* blocks, float* out, int64_t n) noexcept {
  decode_blocks<type>(blocks, out, n);
}
void decode_f32_row(const void* row, float* out, int64_t n) noexcept { decode_f32(row, out, n); }
void decode_f16_row(const void* row, float* out, int64_t n) noexcept { decode_f16(row, out, n); }
void decode_bf16_row(const void* row, float* out, int64_t n) noexcept { decode_bf16(row, out, n); }

template <Type type>
void encode_row(const float* row, const float* importance, void* blocks, int64_t n) noexcept {
  select_encoders("auto").encode[static_cast<uint32_t>(type)](row, importance, blocks, n);
}

#define KIMI_ROW(name) \
  Format{Type::name, #name, BlockTraits<Type::name>::elems, sizeof(BlockTraits<Type::name>::Block), decode_row<Type::name>, \
         encode_row<Type::name>},
constexpr Format kFormats[] = {
    {Type::F32, "F32", 1, 4, decode_f32_row, encode_row<Type::F32>},
    {Type::F16, "F16", 1, 2, decode_f16_row, encode_row<Type::F16>},
    {Type::BF16, "BF16", 1, 2, decode_bf16_row, encode_row<Type::BF16>},
    KIMI_QUANT_TYPES(KIMI_ROW)};
#undef KIMI_ROW

// Every id that was ever given out, also the ones that files no longer use and the ones that we do not read.
constexpr const char* kTypeNames[] = {
    "F32",     "F16",     "Q4_0",     "Q4_1",     "Q4_2",     "Q4_3", "Q5_0",  "Q5_1",   "Q8_0",       "Q8_1",       "Q2_K",
    "Q3_K",    "Q4_K",    "Q5_K",     "Q6_K",     "Q8_K",     "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",    "IQ4_NL",     "IQ3_S",
    "IQ2_S",   "IQ4_XS",  "I8",       "I16",      "I32",      "I64",  "F64",   "IQ1_M",  "BF16",       "Q4_0_4_4",   "Q4_0_4_8",
    "Q4_0_8_8", "TQ1_0",  "TQ2_0",    "IQ4_NL_4_4", "IQ4_NL_4_8", "IQ4_NL_8_8", "MXFP4", "NVFP4", "Q1_0"};

constexpr uint32_t kMaxTypeId = 64;
constexpr std::array<int8_t, kMaxTypeId> make_index() {
  std::array<int8_t, kMaxTypeId> index{};
  index.fill(-1);
  for (size_t i = 0; i < std::size(kFormats); ++i) index[static_cast<uint32_t>(kFormats[i].type)] = static_cast<int8_t>(i);
  return index;
}
constexpr std::array<int8_t, kMaxTypeId> kIndex = make_index();

}  // namespace

std::span<const Format> formats() { return kFormats; }

const Format* find_format(uint32_t type_id) {
  if (type_id >= kMaxTypeId || kIndex[type_id] < 0) return nullptr;
  return &kFormats[kIndex[type_id]];
}

const Format& format_of(Type type) {
  const Format* format = find_format(static_cast<uint32_t>(type));
  KIMI_DCHECK(format != nullptr);
  return *format;
}

const char* type_name(uint32_t type_id) { return type_id < std::size(kTypeNames) ? kTypeNames[type_id] : "unknown"; }

}  // namespace kimi::quant
