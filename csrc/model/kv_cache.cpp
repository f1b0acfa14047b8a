#include "model/kv_cache.h"

#include "backend/kv_view.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"

namespace kimi {

KvCache::KvCache(int64_t n_layers, int64_t n_ctx, int64_t kv_lora_rank, int64_t qk_rope_head_dim, KvType type)
    : n_ctx_(n_ctx), type_(type) {
  const auto row = static_cast<uint64_t>(KvRow(type, kv_lora_rank, qk_rope_head_dim).bytes);
  uint64_t layer;
  KIMI_CHECK(checked_mul(row, static_cast<uint64_t>(n_ctx), &layer) &&
                 checked_mul(layer, static_cast<uint64_t>(n_layers), &bytes_) && bytes_ < (uint64_t{1} << 46),
             ErrorKind::out_of_memory, "memory.kv_cache", "a context of %lld tokens does not fit any memory",
             static_cast<long long>(n_ctx));
  layer_bytes_ = static_cast<int64_t>(layer);
  const uint64_t available = memory_info().available, per_token = row * static_cast<uint64_t>(n_layers);
  const bool fits = bytes_ < (uint64_t{64} << 20) || !available || bytes_ <= available;
  if (!fits || !data_.try_resize(bytes_))
    fail(ErrorKind::out_of_memory, "memory.kv_cache",
         "a context of %lld tokens needs %llu MiB for its cache and %llu MiB are available: use a context of at most %llu tokens "
         "(n_ctx), or close other programs",
         static_cast<long long>(n_ctx), static_cast<unsigned long long>(bytes_ >> 20),
         static_cast<unsigned long long>(available >> 20), static_cast<unsigned long long>(available / per_token * 9 / 10));
}

}  // namespace kimi
