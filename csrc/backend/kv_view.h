// How one position of one layer lies in the latent cache: [normed latent | rotated key].
//   f32, f16   one number after the other
//   q8_0       all numbers as bytes, value = scale * (byte - 128), then the scales of blocks of 32 as halves. The latent fills
//              whole pairs of blocks and the key whole blocks, so that they never share a scale.
#pragma once
#include <cstdint>

#include "backend/backend.h"

namespace kimi {

// Positions of a page: the unit in which the form of rows is decided (docs/architecture.md, "The same bits"). Blocks of keys
// never straddle a page.
constexpr int64_t kPagePositions = 128;

struct KvRow {
  int64_t latent = 0, rope = 0;  // numbers of each as they are stored
  int64_t n_blocks = 0;          // of 32, q8_0 only
  int64_t bytes = 0;

  KvRow(KvType type, int64_t kv_lora_rank, int64_t qk_rope_head_dim) : latent(kv_lora_rank), rope(qk_rope_head_dim) {
    if (type == KvType::q8_0) {
      latent = (latent + 63) / 64 * 64;
      rope = (rope + 31) / 32 * 32;
      n_blocks = (latent + rope) / 32;
      bytes = latent + rope + 2 * n_blocks;
    } else {
      bytes = (latent + rope) * (type == KvType::f16 ? 2 : 4);
    }
  }
};

}  // namespace kimi
