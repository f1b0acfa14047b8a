// The latent cache of one session: per layer and position [normed latent | rotated key] as
// backend/kv_view.h lays them out, 576 numbers at full size.
// Pages are taken from the system as positions are written.
#pragma once
#include <cstdint>

#include "backend/backend.h"
#include "base/aligned_buffer.h"

namespace kimi {

class KvCache {
 public:
  // Throws Error(out_of_memory, "memory.kv_cache") with what would fit.
  KvCache(int64_t n_layers, int64_t n_ctx, int64_t kv_lora_rank, int64_t qk_rope_head_dim, KvType type);

  KvLayer layer(int64_t i) { return {data_.data() + i * layer_bytes_, type_}; }
  int64_t n_ctx() const { return n_ctx_; }
  uint64_t bytes() const { return bytes_; }
  KvType type() const { return type_; }

 private:
  AlignedBuffer<char> data_;
  int64_t n_ctx_, layer_bytes_;
  uint64_t bytes_;
  KvType type_;
};

}  // namespace kimi
