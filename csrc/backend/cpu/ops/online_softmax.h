// What attention keeps of a tile of queries between blocks of keys, and the walk over these blocks.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "backend/cpu/kernels/kernel_table.h"
#include "backend/kv_view.h"

namespace kimi::cpu {

// Views into the caller's memory: running maximum m [lanes], sum l [lanes], output o [dv, lanes].
struct AttentionState {
  float *m, *l, *o;
  static int64_t size(int64_t lanes, int64_t dv) { return (2 + dv) * lanes; }
  AttentionState(float* memory, int64_t lanes) : m(memory), l(memory + lanes), o(memory + 2 * lanes) {}
  void clear(int64_t lanes, int64_t dv) {
    std::fill_n(m, lanes, -INFINITY);
    std::fill_n(l, (1 + dv) * lanes, 0.0f);
  }
};

// Keys [first, end) in blocks that end at the borders of pages: sets what `block`, of any kind, covers, and calls attend(key)
// for each. last_key: [lanes], ascending.
template <typename Block, typename Attend>
void for_key_blocks(Block* block, const AttentionState& state, int64_t first, int64_t end, const int32_t* last_key,
                    const Attend& attend) {
  block->m = state.m;
  block->l = state.l;
  block->o_t = state.o;
  static_assert(kPagePositions <= kMaxAttentionKeys);
  for (int64_t key = first; key < end; key += block->n_keys) {
    block->key0 = key;
    block->n_keys = std::min(kPagePositions - key % kPagePositions, end - key);
    block->last_key = key + block->n_keys - 1 > last_key[0] ? last_key : nullptr;
    attend(key);
  }
}

}  // namespace kimi::cpu
