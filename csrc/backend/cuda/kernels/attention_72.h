// Attention of one picture: every query sees every key, the softmax runs online, no matrix of scores exists. For MoonViT's
// heads of 72 numbers: 9 pieces of 16 bytes, an odd number, so that rows need no padding and no swizzle to be free of bank
// conflicts. Sums over 72 are four steps of 16 and half a step, whose other half is zeros in the queries; values take 9
// tiles of 8 with nothing wasted.
//
// A block takes 16 queries for each of its warps, of one head; keys and values come in tiles of kKeys through two stages. What a
// thread holds of queries, scores and output stays in registers through all of the loop.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

struct HeadsOf72Args {
  const uint16_t *q, *k, *v;  // bf16 [heads, n, 72]
  float* out;                 // [n, heads, 72]
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

// What a warp holds of its 16 queries: rows lane / 4 and lane / 4 + 8 of their fragments; four lanes share a row.
template <int kMistake>
struct HeadsOf72Warp {
  static constexpr int kTiles = kHead / 8;
  uint32_t q[5][4];
  float out[kTiles][4] = {}, top[2] = {-INFINITY, -INFINITY}, total[2] = {};

  __device__ __forceinline__ void load_queries(const uint16_t* rows) {
    const int lane = lane_id();
    KIMI_UNROLL
    for (int s = 0; s < 5; ++s) load_matrices<false>(q[s], rows + lane % 16 * kHead + (2 * s + lane / 16) * 8);
    q[4][2] = q[4][3] = 0;  // numbers 72..79
  }

  __device__ __forceinline__ void score_keys(const uint16_t* k, float (&score)[kKeys / 8][4]) const {
    const int lane = lane_id();
    KIMI_UNROLL
    for (int s = 0; s < 5; ++s) KIMI_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      uint32_t b[4];
      load_matrices<false>(b, k + (j * 16 + lane % 8 + lane / 16 * 8) * kHead + (2 * s + lane / 8 % 2) * 8);
      mma_bf16(score[2 * j], q[s], b[0], b[1]);
      mma_bf16(score[2 * j + 1], q[s], b[2], b[3]);
    }
  }

  // Scores of the keys from `first` on become weights relative to the largest score so far, and what was summed before is scaled.
  __device__ __forceinline__ void soften(const HeadsOf72Args& args, int first, float (&score)[kKeys / 8][4]) {
    float best[2] = {top[0], top[1]};
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 8; ++j) KIMI_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int key = first + j * 8 + lane_id() % 4 * 2 + r % 2;
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
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 8; ++j) KIMI_UNROLL
    for (int r = 0; r < 4; ++r) {
      score[j][r] = exp2_fast(score[j][r] - top[r / 2]);
      total[r / 2] += score[j][r];
    }
  }

  __device__ __forceinline__ void add_values(const uint16_t* v, const float (&weight)[kKeys / 8][4]) {
    const int lane = lane_id();
    KIMI_UNROLL
    for (int j = 0; j < kKeys / 16; ++j) {
      const float(&low)[4] = weight[2 * j], (&high)[4] = weight[2 * j + 1];
      const uint32_t a[4] = {pack_bf16(low[0], low[1]), pack_bf16(low[2], low[3]), pack_bf16(high[0], high[1]),
                             pack_bf16(high[2], high[3])};
      KIMI_UNROLL
      for (int t = 0; t < kTiles; t += 2) {
        uint32_t b[4];
        const int piece = t + lane / 16 < kTiles ? t + lane / 16 : t;
        load_matrices<true>(b, v + (j * 16 + lane % 16) * kHead + piece * 8);
        mma_bf16(out[t], a, b[0], b[1]);
        if (t + 1 < kTiles) mma_bf16(out[t + 1 < kTiles ? t + 1 : 0], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void store(const HeadsOf72Args& args, int first_query, int head) {
    const int lane = lane_id();
    KIMI_UNROLL
    for (int half = 0; half < 2; ++half) {
      total[half] = warp_sum<4>(total[half]);
      const int query = first_query + lane / 4 + half * 8;
      if (query >= args.n) continue;
      const float inverse = 1.0f / total[half];
      KIMI_UNROLL
      for (int t = 0; t < kTiles; ++t)
        *reinterpret_cast<float2*>(args.out + (static_cast<int64_t>(query) * args.heads + head) * kHead + t * 8 +
                                   lane % 4 * 2) = {out[t][2 * half] * inverse, out[t][2 * half + 1] * inverse};
    }
  }
};

// Mistakes that tests plant: 1 no barrier before a tile is overwritten; 2 keys behind the last are not masked; 3 the
// maximum is taken over half of a row's lanes; 4 the 8 numbers behind the last row are never written.
template <int kWarps, int kMistake = 0>
__global__ void __launch_bounds__(kWarps* kWarp) attend_heads_of_72(HeadsOf72Args args) {
  constexpr int kThreads = kWarps * kWarp;
  auto& shared = shared_storage<HeadsOf72Shared<kWarps>>();
  const int head = static_cast<int>(blockIdx.y), query0 = static_cast<int>(blockIdx.x) * kWarps * 16;
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

  HeadsOf72Warp<kMistake> mine;
  for (int block = 0; block < n_blocks; ++block) {
    if (block + 1 < n_blocks) {
      fill(shared.k[(block + 1) % 2], args.k, (block + 1) * kKeys, kKeys);
      fill(shared.v[(block + 1) % 2], args.v, (block + 1) * kKeys, kKeys);
    }
    copy_async_commit();
    copy_async_wait<1>();
    block_sync();
    if (block == 0) mine.load_queries(shared.q + warp_id() * 16 * kHead);
    float score[kKeys / 8][4] = {};
    mine.score_keys(shared.k[block % 2], score);
    mine.soften(args, block * kKeys, score);
    mine.add_values(shared.v[block % 2], score);
    if (kMistake != 1) block_sync();  // before the next tile but one overwrites this
  }
  copy_async_wait<0>();
  mine.store(args, query0 + warp_id() * 16, head);
}

// Queries, keys and values of a picture as that takes them: queries and keys rotated, all rounded to bf16.
struct PackHeadsArgs {
  const float *q, *k, *v;  // [n, hidden]
  const float* cos_sin;    // [n, head_dim / 2, 2]
  int n, hidden, head_dim;
  uint16_t* out;  // bf16 [3, heads, n, head_dim]
};
// A thread for each pair of numbers.
static __global__ void __launch_bounds__(128) pack_heads(PackHeadsArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x, pairs = args.hidden / 2, per_part = args.n * pairs;
  if (index >= 3 * per_part) return;
  const int part = static_cast<int>(index / per_part), column = static_cast<int>(index % pairs) * 2, d = column % args.head_dim;
  const int64_t row = index % per_part / pairs;
  const float* x = (part == 0 ? args.q : part == 1 ? args.k : args.v) + row * args.hidden + column;
  const float *turn = args.cos_sin + row * args.head_dim + d, a = x[0], b = x[1], c = turn[0], s = turn[1];
  const bool rotated = part < 2;
  *reinterpret_cast<uint32_t*>(args.out + part * static_cast<int64_t>(args.n) * args.hidden +
                               (column / args.head_dim * static_cast<int64_t>(args.n) + row) * args.head_dim + d) =
      pack_bf16(rotated ? a * c - b * s : a, rotated ? a * s + b * c : b);
}

}  // namespace kimi::cuda
