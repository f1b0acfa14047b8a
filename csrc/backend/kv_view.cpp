#include "backend/kv_view.h"

#include <cstring>

namespace kimi {

void KvPageLayout::copy_rows(const uint8_t* from, int64_t n_rows, uint8_t* to) const {
  for (int64_t i = 0; i < n_layers; ++i)
    std::memcpy(to + i * layer_bytes(), from + i * layer_bytes(), static_cast<size_t>(n_rows * row_bytes));
}

void KvPageLayout::pack_rows(const uint8_t* page, int64_t n_rows, uint8_t* out) const {
  for (int64_t i = 0; i < n_layers; ++i)
    std::memcpy(out + i * n_rows * row_bytes, page + i * layer_bytes(), static_cast<size_t>(n_rows * row_bytes));
}

void KvPageLayout::unpack_rows(const uint8_t* in, int64_t n_rows, uint8_t* page) const {
  for (int64_t i = 0; i < n_layers; ++i)
    std::memcpy(page + i * layer_bytes(), in + i * n_rows * row_bytes, static_cast<size_t>(n_rows * row_bytes));
}

}  // namespace kimi
