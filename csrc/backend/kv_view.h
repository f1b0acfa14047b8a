// How positions lie in the latent cache: the only file that turns a position into an address. One position of one layer is
// [normed latent | rotated key]:
//   f32, f16   one number after the other
//   q8_0       all numbers as bytes, value = scale * (byte - 128), then the scales of blocks of 32 as halves. The latent fills
//              whole pairs of blocks and the key whole blocks, so that they never share a scale.
// A page holds kPagePositions positions of all layers, [n_layers][kPagePositions][row bytes].
#pragma once
#include <cstdint>

namespace kimi {

enum class KvType { f16, f32, q8_0 };

// Positions of a page: the unit in which memory is shared and the form of rows is decided (docs/architecture.md, "The same
// bits"). Blocks of keys never straddle a page.
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

// One layer of the positions of a session.
struct KvLayer {
  uint8_t* const* pages = nullptr;  // one for each kPagePositions positions
  int64_t offset = 0;               // of the layer in every page, in bytes
  KvType type = KvType::f16;
  int64_t row_bytes = 0;

  // Rows up to the end of a page lie one after the other.
  uint8_t* row(int64_t position) const {
    const auto at = static_cast<uint64_t>(position), in_page = static_cast<uint64_t>(kPagePositions);
    return pages[at / in_page] + offset + static_cast<int64_t>(at % in_page) * row_bytes;
  }
};

// What a page of a model's cache looks like.
struct KvPageLayout {
  KvType type = KvType::f16;
  int64_t n_layers = 0, row_bytes = 0;

  int64_t layer_bytes() const { return kPagePositions * row_bytes; }
  int64_t bytes() const { return n_layers * layer_bytes(); }
  int64_t bytes_of(int64_t n_rows) const { return n_layers * n_rows * row_bytes; }
  KvLayer layer(uint8_t* const* pages, int64_t i) const { return {pages, i * layer_bytes(), type, row_bytes}; }
  // The first n_rows of every layer, run by run: body(offset in a page, offset in [n_layers][n_rows][row bytes], bytes).
  template <typename Body>
  void for_rows(int64_t n_rows, const Body& body) const {
    if (n_rows == kPagePositions) return body(int64_t{0}, int64_t{0}, bytes());
    for (int64_t i = 0; i < n_layers; ++i) body(i * layer_bytes(), i * n_rows * row_bytes, n_rows * row_bytes);
  }
};

// The cache of one session, for the time of a step.
struct KvView {
  uint8_t* const* pages = nullptr;
  KvPageLayout layout{};
  KvLayer layer(int64_t i) const { return layout.layer(pages, i); }
};

}  // namespace kimi
