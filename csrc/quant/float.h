// F32, F16 and BF16: one element is one block. Rows may lie at any address.
#pragma once
#include "quant/block.h"

namespace kimi::quant {

KIMI_INLINE void decode_f32(const void* row, float* out, int64_t n) {
  if (n > 0) __builtin_memcpy(out, row, static_cast<size_t>(n) * 4);
}
KIMI_INLINE void decode_f16(const void* row, float* out, int64_t n) {
  const auto* bytes = static_cast<const uint8_t*>(row);
  for (int64_t i = 0; i < n; ++i) out[i] = load_f16(bytes + 2 * i);
}
KIMI_INLINE void decode_bf16(const void* row, float* out, int64_t n) {
  const auto* bytes = static_cast<const uint8_t*>(row);
  for (int64_t i = 0; i < n; ++i) out[i] = f32_from_bf16(load_u16(bytes + 2 * i));
}

}  // namespace kimi::quant
