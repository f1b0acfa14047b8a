// Fetches bytes piece by piece, a piece for each step of a loop: all at once would fill the queue of misses and stop the loop.
// Past the outer caches, where weights would only push activations out.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "base/f16.h"

namespace kimi::cpu::loops {

struct Fetching {
  const uint8_t *at, *end;
  int64_t piece;

  KIMI_INLINE Fetching over(const Ahead& ahead, int64_t n_steps) {
    return {ahead.first, ahead.first + ahead.bytes, n_steps > 0 ? (ahead.bytes + 64 * n_steps - 1) / (64 * n_steps) * 64 : 0};
  }
  __attribute__((always_inline)) void step() {
    const uint8_t* to = end - at > piece ? at + piece : end;
    for (; at < to; at += 64) __builtin_prefetch(at, 0, 0);
  }
};

}  // namespace kimi::cpu::loops
