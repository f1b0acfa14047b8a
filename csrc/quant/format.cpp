// The table of formats.
#include "quant/format.h"

#include <array>

#include "base/error.h"
#include "quant/blocks.h"

namespace kimi::quant {
namespace {

template <Type type>
void decode_row(const void* blocks, float* out, int64_t n) noexcept {
  decode_blocks<type>(blocks, out, n);
}
void decode_f32_row(const void* row, float* out, int64_t n) noexcept { decode_f32(row, out, n); }
void decode_f16_row(const void* row, float* out, int64_t n) noexcept { decode_f16(row, out, n); }
void decode_bf16_row(const void* row, float* out, int64_t n) noexcept { decode_bf16(row, out, n); }

#define KIMI_ROW(name, id) \
  Format{Type::name, #name, BlockTraits<Type::name>::elems, sizeof(BlockTraits<Type::name>::Block), decode_row<Type::name>},
constexpr Format kFormats[] = {{Type::F32, "F32", 1, 4, decode_f32_row},
                               {Type::F16, "F16", 1, 2, decode_f16_row},
                               {Type::BF16, "BF16", 1, 2, decode_bf16_row},
                               KIMI_QUANT_TYPES(KIMI_ROW)};
#undef KIMI_ROW

constexpr std::array<int8_t, kMaxTypes> make_index() {
  std::array<int8_t, kMaxTypes> index{};
  index.fill(-1);
  for (size_t i = 0; i < std::size(kFormats); ++i) index[static_cast<uint32_t>(kFormats[i].type)] = static_cast<int8_t>(i);
  return index;
}
constexpr std::array<int8_t, kMaxTypes> kIndex = make_index();

}  // namespace

std::span<const Format> formats() { return kFormats; }

const Format* find_format(uint32_t type_id) {
  if (type_id >= kIndex.size() || kIndex[type_id] < 0) return nullptr;
  return &kFormats[kIndex[type_id]];
}

const Format* find_format(std::string_view name) {
  for (const Format& format : kFormats)
    if (name == format.name) return &format;
  return nullptr;
}

const Format& format_of(Type type) {
  const Format* format = find_format(static_cast<uint32_t>(type));
  KIMI_DCHECK(format != nullptr);
  return *format;
}

std::string format_names() {
  std::string names;
  for (const Format& format : kFormats) names.append(names.empty() ? "" : " ").append(format.name);
  return names;
}

}  // namespace kimi::quant
