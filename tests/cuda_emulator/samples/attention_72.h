// Attention of one picture: every query sees every key, the softmax runs online, no matrix of scores exists. For MoonViT's
// heads of 72 numbers: 9 pieces of 16 bytes, an odd number, so that rows need no padding and no swizzle to be free of bank
// conflicts. Sums over 72 are four steps of 16 and half a step, whose other half is zeros in the queries; values take 9
// tiles of 8 with nothing wasted.
//
// A block takes 16 queries for each of its warps, of one head; keys and values come in tiles of kKeys through two stages. The
// kernel is one long body: what a thread holds of queries, scores and output stays in registers through all of the loop.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

struct HeadsOf72Args {
  const uint16_t *q, *k, *v;  // bf16 [heads, n, 72]
  uint16_t* out;              // bf16 [n, heads, 72]
  int n, heads;
  float scale;  // of the scores, times log2(e)
};

constexpr int kHead = 72, kHeadPieces = kHead / 8, kKeys = 64;

template <int kWarps>
struct HeadsOf72Shared {
  alignas(128) uint16_t q[kWarps * 16 * kHead + 8];  // the last half step of the last row reads 8 numbers more
  alignas(128) uint16_t k[2][kKeys * kHead + 8];
  alignas(128) uint16_t v[2][kKeys * kHead];
};

// Mistakes that tests plant: 1 no barrier before a tile is overwritten; 2 keys behind the last are not masked; 3 the
// maximum is taken over half of a row's lanes; 4 the 8 numbers behind the last row are never written.
template <int kWarps, int kMistake = 0>
__global__ void __launch_bounds__(kWarps* kWarp) attend_heads_of_72(HeadsOf72Args args) {
  constexpr int kThreads = kWarps * kWarp, kTiles = kHead / 8;
  auto& shared = shared_storage<HeadsOf72Shared<kWarps>>();
  const int head = static_cast<int>(blockIdx.y), query0 = static_cast<int>(blockIdx.x) * kWarps * 16, lane = lane_id(),
            warp = warp_id();
  const int64_t head_at = static_cast<int64_t>(head) * args.n * kHead;
  const int n_blocks = (args.n + kKeys - 1) / kKeys;
  dependency_wait();

  const auto fill = [&](uint16_t* to, const uint16_t* from, int first, int rows) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * kHeadPieces; i += kThreads) {
      const int row = first + i / kHeadPieces;
      const bool inside = row < args.n;
      copy_async(to + i * 8, from + head_at + (inside ? static_cast<int64_t>(row) * kHead + i % kHeadPieces * 8 : 0),
                 inside ? 16 : 0);
    }
  };
  fill(shared.q, args.q, query0, kWarps * 16);
  fill(shared.k[0], args.k, 0, kKeys);
  fill(shared.v[0], args.v, 0, kKeys);
  copy_async_commit();
  if (kMistake != 4 && threadIdx.x < 8) {
    shared.q[kWarps * 16 * kHead + threadIdx.x] = 0;
    shared.k[0][kKeys * kHead + threadIdx.x] = 0;
    shared.k[1][kKeys * kHead + threadIdx.x] = 0;
  }

  uint32_t q[5][4];
  float out[kTiles][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};
  for (int block = 0; block < n_blocks; ++block) {
    if (block + 1 < n_blocks) {
      fill(shared.k[(block + 1) % 2], args.k, (block + 1) * kKeys, kKeys);
      fill(shared.v[(block + 1) % 2], args.v, (block + 1) * kKeys, kKeys);
    }
    copy_async_commit();
    copy_async_wait<1>();
    block_sync();
    if (block == 0) {
      KIMI_UNROLL
      for (int s = 0; s < 5; ++s) {
        load_matrices<false>(q[s], shared.q + (warp * 16 + lane % 16) * kHead + (2 * s + lane / 16) * 8);
      }
      q[4][2] = q[4][3] = 0;  // numbers 72..79
    }
    const uint16_t *k = shared.k[block % 2], *v = shared.v[block % 2];
    float score[kKeys / 8][4] = {};
    KIMI_UNROLL
    for (int s = 0; s < 5; ++s) KIMI_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t b[4];
      load_matrices<false>(b, k + (j * 16 + lane % 8 + lane / 16 * 8) * kHead + (2 * s + lane / 8 % 2) * 8);
      mma_bf16(score[2 * j], q[s], b[0], b[1]);
      mma_bf16(score[2 * j + 1], q[s], b[2], b[3]);
    }
    // Rows lane / 4 and lane / 4 + 8 of the warp's queries; four lanes share a row.
    float best[2] = {top[0], top[1]};
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 8; ++j) KIMI_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int key = block * kKeys + j * 8 + lane % 4 * 2 + r % 2;
      score[j][r] = kMistake == 2 || key < args.n ? score[j][r] * args.scale : -INFINITY;
      best[r / 2] = score[j][r] > best[r / 2] ? score[j][r] : best[r / 2];
    }
    KIMI_UNROLL
    for (int half = 0; half < 2; ++half) {
      best[half] = warp_max < kMistake == 3 ? 2 : 4 > (best[half]);
      const float factor = exp2_fast(top[half] - best[half]);
      top[half] = best[half];
      total[half] *= factor;
      KIMI_UNROLL
      for (int t = 0; t < kTiles; ++t) {
        out[t][2 * half] *= factor;
        out[t][2 * half + 1] *= factor;
      }
    }
    uint32_t p[kKeys / 8][2];
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 8; ++j) {
      KIMI_UNROLL
      for (int r = 0; r < 4; ++r) {
        score[j][r] = exp2_fast(score[j][r] - top[r / 2]);
        total[r / 2] += score[j][r];
      }
      p[j][0] = pack_bf16(score[j][0], score[j][1]);
      p[j][1] = pack_bf16(score[j][2], score[j][3]);
    }
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      const uint32_t a[4] = {p[2 * j][0], p[2 * j][1], p[2 * j + 1][0], p[2 * j + 1][1]};
      KIMI_UNROLL
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t b[4];
        const int piece = t + lane / 16 < kTiles ? t + lane / 16 : t;
        load_matrices<true>(b, v + (j * 16 + lane % 16) * kHead + piece * 8);
        mma_bf16(out[t], a, b[0], b[1]);
        if (t + 1 < kTiles) mma_bf16(out[t + 1 < kTiles ? t + 1 : 0], a, b[2], b[3]);
      }
    }
    if (kMistake != 1) block_sync();  // before the next tile but one overwrites this
  }
  copy_async_wait<0>();
  KIMI_UNROLL
  for (int half = 0; half < 2; ++half) {
    total[half] = warp_sum<4>(total[half]);
    const int query = query0 + warp * 16 + lane / 4 + half * 8;
    if (query >= args.n) continue;
    const float inverse = 1.0f / total[half];
    KIMI_UNROLL
    for (int t = 0; t < kTiles; ++t)
      *reinterpret_cast<uint32_t*>(args.out + (static_cast<int64_t>(query) * args.heads + head) * kHead + t * 8 + lane % 4 * 2) =
          pack_bf16(out[t][2 * half] * inverse, out[t][2 * half + 1] * inverse);
  }
}

}  // namespace kimi::cuda
