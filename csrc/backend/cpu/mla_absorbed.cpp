// The absorbed form of latent attention: one latent row is key and value of every head.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/mla_state.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kSplitTokens = 4;   // up to this many new tokens the keys are split over threads
constexpr int64_t kMergedDims = 32;   // of the output that one task takes from all splits

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many keys one task takes: of a short context an eighth. It follows from the number of keys alone, so that results never depend
// on the number of threads.
int64_t split_size(int64_t n_keys) { return std::clamp<int64_t>(ceil_div(n_keys, 8 * 64) * 64, 64, 512); }

// What each part of the keys counts for in the whole, divided by the whole's sum: share [n_parts, lanes].
void shares(float* states, int64_t n_parts, int64_t lanes, int64_t dv, float* share) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    float top = -INFINITY, sum = 0;
    for (int64_t part = 0; part < n_parts; ++part) top = std::max(top, AttentionState(states + part * AttentionState::size(lanes, dv), lanes).m[lane]);
    for (int64_t part = 0; part < n_parts; ++part) {
      const AttentionState state(states + part * AttentionState::size(lanes, dv), lanes);
      const float weight = state.l[lane] > 0 ? std::exp(state.m[lane] - top) : 0.0f;
      share[part * lanes + lane] = weight;
      sum += weight * state.l[lane];
    }
    for (int64_t part = 0; part < n_parts; ++part) share[part * lanes + lane] /= sum;
  }
}

}  // namespace

void CpuBackend::attend_absorbed(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended) {
  const int64_t n = slice.n_out, heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
  const int64_t width = rank + rope, q_head = nope + rope, v_head = args.v_head_dim;

  // Queries into the latent space, head by head: [heads, n, rank].
  heads_.resize(static_cast<size_t>(heads * n * std::max(nope, rank)));
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < n; ++t)
      std::memcpy(heads_.data() + (h * n + t) * nope, q + (t * heads + h) * q_head, static_cast<size_t>(nope) * sizeof(float));
  Activations q_nope{heads_.data(), heads * n, nope, nope, {}};
  if (observer_) show_heads(args.k_b, heads_.data(), n);
  quantize_for(args.k_b, &q_nope, &q8_heads_);
  expanded_.resize(static_cast<size_t>(heads * n * rank));
  float* q_latent = expanded_.data();
  std::vector<Product> products;
  for (int64_t h = 0; h < heads; ++h) products.push_back({args.k_b.at(h), q_nope.rows(h * n, n), q_latent + h * n * rank, rank});
  multiply(products, args.rows, args.v_b.data);

  // Queries side by side: lane = token * heads + head.
  const KvRow row(slice.cache.type, rank, rope);
  const bool bytes = slice.cache.type == KvType::q8_0 && kernels_.latent_block_q8 && !float_activations_;
  const bool bf16 = slice.cache.type == KvType::f16 && attends_in_bf16(args, slice);
  const int64_t n_lanes = n * heads, half = kernels_.tile_lanes / 2;
  const int64_t lanes = bytes ? kLatentLanes : n_lanes <= half ? half : kernels_.tile_lanes;
  const int64_t n_tiles = ceil_div(n_lanes, lanes), total = slice.past + slice.n, first_query = total - n;
  const int64_t split_keys = slice.n <= kSplitTokens ? split_size(total) : total, n_splits = ceil_div(total, split_keys);
  latent_.resize(static_cast<size_t>(n_tiles * width * lanes));
  for_rows(n_tiles, width * lanes, [&](int64_t tile) {
    float* q_t = latent_.data() + tile * width * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t index = tile * lanes + lane, t = index / heads, h = index % heads;
      if (index >= n_lanes) {
        for (int64_t d = 0; d < width; ++d) q_t[d * lanes + lane] = 0.0f;
        continue;
      }
      const float *latent = q_latent + (h * n + t) * rank, *pe = q + (t * heads + h) * q_head + nope;
      for (int64_t d = 0; d < rank; ++d) q_t[d * lanes + lane] = latent[d] * args.scale;
      for (int64_t d = 0; d < rope; ++d) q_t[(rank + d) * lanes + lane] = pe[d] * args.scale;
    }
  });
  if (bytes) quantize_queries(row, rank, rope, n_tiles);
  if (bf16) {
    bf16_queries_.resize(static_cast<size_t>(n_tiles * width * lanes));
    for_rows(n_tiles, width * lanes, [&](int64_t tile) {
      kernels_.bf16_pairs_from_f32(latent_.data() + tile * width * lanes, lanes, width, lanes, 1.0f, bf16_queries_.data() + tile * width * lanes, lanes);
    });
  }

  const int64_t state_size = AttentionState::size(lanes, rank);
  states_.resize(static_cast<size_t>(n_tiles * n_splits * state_size));
  pool_.parallel_for(n_tiles * n_splits, [&](int64_t task, int thread) {
    const int64_t tile = task / n_splits, split = task % n_splits;
    AttentionState state(states_.data() + task * state_size, lanes);
    state.clear(lanes, rank);
    AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
    scratch.resize(static_cast<size_t>(std::max({kMaxAttentionKeys * (width + lanes), latent_q8_scratch_floats(row.n_blocks),
                                                 latent_f16_scratch_floats(lanes, rank, rope)})));
    int32_t last_key[64];
    for (int64_t lane = 0; lane < lanes; ++lane)
      last_key[lane] = static_cast<int32_t>(first_query + std::min(tile * lanes + lane, n_lanes - 1) / heads);
    const int64_t end = std::min<int64_t>({total, (split + 1) * split_keys, last_key[lanes - 1] + 1});
    const int64_t first = split * split_keys;
    if (bytes) {
      const auto* rows = static_cast<const uint8_t*>(slice.cache.data);
      LatentBlockQ8 block{};
      block.q = q8_queries_.q.data() + tile * row.n_blocks * 32 * lanes;
      block.q_scale = q8_queries_.scale.data() + tile * row.n_blocks * lanes;
      block.q_sum = q8_queries_.sum.data() + tile * row.n_blocks * lanes;
      block.row_bytes = row.bytes;
      block.n_blocks = row.n_blocks;
      block.dv = rank;
      block.scratch = scratch.data();
      for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
        block.rows = rows + key * row.bytes;
        const bool more = key + block.n_keys < end;
        const int64_t next = more ? key + block.n_keys : std::min((split + pool_.n_threads()) * split_keys, total);
        block.ahead = {rows + next * row.bytes, std::min(kMaxAttentionKeys, (more ? end : total) - next) * row.bytes};
        kernels_.latent_block_q8(block);
      });
    } else if (bf16) {
      const auto* rows = static_cast<const uint16_t*>(slice.cache.data);
      LatentBlockF16 block{};
      block.lanes = lanes;
      block.q_t = bf16_queries_.data() + tile * width * lanes;
      block.rows_end = rows + end * width;
      block.rank = block.dv = rank;
      block.rope = rope;
      block.scratch = scratch.data();
      for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
        block.rows = rows + key * width;
        kernels_.latent_block_f16(block);
      });
    } else {
      AttentionBlock block{};
      block.lanes = lanes;
      block.q_t = latent_.data() + tile * width * lanes;
      block.dk1 = block.ldk1 = block.ldv = width;
      block.dv = rank;
      block.scores = scratch.data() + kMaxAttentionKeys * width;
      for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
        block.k1 = block.v = latent_rows(slice.cache, rank, rope, key, block.n_keys, scratch.data());
        kernels_.attention_block(block);
      });
    }
  });

  // The splits together, and back out of the latent space.
  const int64_t n_parts = ceil_div(rank, kMergedDims);
  shares_.resize(static_cast<size_t>(n_tiles * n_splits * lanes));
  for_rows(n_tiles, n_splits * lanes * 32, [&](int64_t tile) {
    shares(states_.data() + tile * n_splits * state_size, n_splits, lanes, rank, shares_.data() + tile * n_splits * lanes);
  });
  for_rows(n_tiles * n_parts, n_splits * kMergedDims * lanes, [&](int64_t task) {
    const int64_t tile = task / n_parts, d0 = task % n_parts * kMergedDims, dims = std::min(kMergedDims, rank - d0);
    float sum[kMergedDims * 64] = {};
    for (int64_t split = 0; split < n_splits; ++split) {
      const float* o = AttentionState(states_.data() + (tile * n_splits + split) * state_size, lanes).o + d0 * lanes;
      const float* share = shares_.data() + (tile * n_splits + split) * lanes;
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t lane = 0; lane < lanes; ++lane) sum[d * lanes + lane] += o[d * lanes + lane] * share[lane];
    }
    for (int64_t lane = 0; lane < lanes && tile * lanes + lane < n_lanes; ++lane) {
      const int64_t index = tile * lanes + lane, t = index / heads, h = index % heads;
      for (int64_t d = 0; d < dims; ++d) heads_[static_cast<size_t>((h * n + t) * rank + d0 + d)] = sum[d * lanes + lane];
    }
  });
  Activations context{heads_.data(), heads * n, rank, rank, {}};
  if (observer_) show_heads(args.v_b, heads_.data(), n);
  quantize_for(args.v_b, &context, &q8_heads_);
  products.clear();
  for (int64_t h = 0; h < heads; ++h) products.push_back({args.v_b.at(h), context.rows(h * n, n), attended + h * v_head, heads * v_head});
  multiply(products, args.rows, args.o.data);
}

// The tiles of queries in `latent_`, [n_tiles, rank + rope, lanes], as LatentBlockQ8 wants them, in q8_queries_.
void CpuBackend::quantize_queries(const KvRow& row, int64_t rank, int64_t rope, int64_t n_tiles) {
  constexpr int64_t lanes = kLatentLanes;
  const int64_t n = row.latent + row.rope, width = rank + rope;
  q8_queries_.q.resize(static_cast<size_t>(n_tiles * n * lanes));
  q8_queries_.scale.resize(static_cast<size_t>(n_tiles * row.n_blocks * lanes));
  q8_queries_.sum.resize(static_cast<size_t>(n_tiles * row.n_blocks * lanes));
  for_rows(n_tiles, n * lanes, [&](int64_t tile) {
    std::vector<float> one(static_cast<size_t>(n));
    std::vector<Q8Block> blocks(static_cast<size_t>(row.n_blocks));
    const float* queries = latent_.data() + tile * width * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t d = 0; d < rank; ++d) one[static_cast<size_t>(d)] = queries[d * lanes + lane];
      for (int64_t d = 0; d < rope; ++d) one[static_cast<size_t>(row.latent + d)] = queries[(rank + d) * lanes + lane];
      kernels_.quantize_row(one.data(), n, blocks.data());
      for (int64_t b = 0; b < row.n_blocks; ++b) {
        const Q8Block& block = blocks[static_cast<size_t>(b)];
        const int64_t first = tile * row.n_blocks + b;
        for (int64_t four = 0; four < 8; ++four) std::memcpy(q8_queries_.q.data() + ((first * 8 + four) * lanes + lane) * 4, block.q + 4 * four, 4);
        q8_queries_.scale.data()[first * lanes + lane] = block.scale;
        q8_queries_.sum.data()[first * lanes + lane] = block.isum;
      }
    }
  });
}

}  // namespace kimi::cpu
