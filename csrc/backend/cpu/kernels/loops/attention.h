// One block of keys for one tile of queries, flash style. Queries lie in lanes, so that maxima, sums and rescaling are
// plain vertical vector operations and neither keys nor values are ever transposed.
#pragma once
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/cpu/kernels/loops/gemm.h"

namespace kimi::cpu {
namespace {

// Scores become weights, in place; m and l move on and the output so far is rescaled. Block: AttentionBlock or one like it.
template <int W, int NV, typename Block>
KIMI_INLINE void softmax_block(const Block& block, float* scores) {
  using F = typename Vec<W>::F;
  using I = typename Vec<W>::I;
  constexpr int kLanes = W * NV;
  constexpr float kNever = -1e30f;
  for (int v = 0; v < NV; ++v) {
    const int at = v * W;
    const F m_old = load<W>(block.m + at);
    F m = m_old;
    if (block.last_key) {
      const I last = *reinterpret_cast<const typename Vec<W>::IU*>(block.last_key + at);
      for (int64_t key = 0; key < block.n_keys; ++key) {
        const I position = static_cast<int32_t>(block.key0 + key) - I{};
        const F score = position <= last ? load<W>(scores + key * kLanes + at) : splat<W>(kNever);
        store<W>(scores + key * kLanes + at, score);
        m = max<W>(m, score);
      }
    } else {
      for (int64_t key = 0; key < block.n_keys; ++key) m = max<W>(m, load<W>(scores + key * kLanes + at));
    }
    F l = {};
    for (int64_t key = 0; key < block.n_keys; ++key) {
      const F score = load<W>(scores + key * kLanes + at);
      F p = exp<W>(score - m);
      if (block.last_key) p = score > kNever ? p : F{};
      store<W>(scores + key * kLanes + at, p);
      l += p;
    }
    const F correction = m_old > kNever ? exp<W>(m_old - m) : F{};
    store<W>(block.l + at, load<W>(block.l + at) * correction + l);
    store<W>(block.m + at, m);
    for (int64_t d = 0; d < block.dv; ++d) {
      float* o = block.o_t + d * kLanes + at;
      store<W>(o, load<W>(o) * correction);
    }
  }
}

template <int W, int NV, int MR>
KIMI_INLINE void attention_lanes(const AttentionBlock& block) {
  constexpr int kLanes = W * NV;
  float* scores = block.scores;  // [n_keys, lanes]
  gemm_f32<W, NV, MR>(block.k1, block.ldk1, 1, block.q_t, kLanes, block.dk1, block.n_keys, scores, kLanes, false);
  if (block.dk2)
    gemm_f32<W, NV, MR>(block.k2, block.ldk2, 1, block.q_t + block.dk1 * kLanes, kLanes, block.dk2, block.n_keys, scores, kLanes,
                        true);
  softmax_block<W, NV>(block, scores);
  gemm_f32<W, NV, MR>(block.v, 1, block.ldv, scores, kLanes, block.n_keys, block.dv, block.o_t, kLanes, true);
}

template <int W, int MR>
void attention_block(const AttentionBlock& block) {
  if (block.lanes == W)
    attention_lanes<W, 1, W == 16 ? 16 : 2 * MR>(block);  // half the columns leave registers for more rows: 16 values are a line
  else
    attention_lanes<W, 2, MR>(block);
}

}  // namespace
}  // namespace kimi::cpu
