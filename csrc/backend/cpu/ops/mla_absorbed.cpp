// The absorbed form of latent attention: one latent row is key and value of every head.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ops/online_softmax.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kMergedDims = 32;         // of the output that one task takes from all splits
constexpr int64_t kStateFloats = 16 << 20;  // of all tiles that are worked on at a time

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How many keys one task takes of a row that sees n_keys: of a short context an eighth. It follows from the row's position alone,
// so results depend neither on the number of threads nor on the rows beside it.
int64_t split_size(int64_t n_keys) { return std::clamp<int64_t>(ceil_div(n_keys, 8 * 64) * 64, 64, 512); }

// Rows from `first` on that lie together, before `end`: a block at most.
Ahead latents_ahead(const KvLayer& cache, int64_t first, int64_t end) {
  if (first >= end) return {};
  return {cache.row(first), std::min(kPagePositions - first % kPagePositions, end - first) * cache.row_bytes};
}

// Appends the tiles of the last n_out rows of a slice, which are tokens token0 on of all.
void add_tiles(const AttentionSlice& slice, int64_t token0, int64_t heads, int64_t lanes, int64_t max_tokens,
               std::vector<LatentTile>* tiles) {
  const int32_t* positions = slice.positions + (slice.n - slice.n_out);
  for (int64_t token = 0; token < slice.n_out;) {
    const int64_t split_keys = split_size(positions[token] + 1);
    int64_t count = 1;
    while (count < max_tokens && token + count < slice.n_out && split_size(positions[token + count] + 1) == split_keys) ++count;
    const int64_t end = positions[token + count - 1] + 1;
    for (int64_t head = 0; head < heads; head += lanes)
      tiles->push_back({slice.cache, token0 + token, count, head, std::min(lanes, heads - head), end, split_keys,
                        ceil_div(end, split_keys), 0});
    token += count;
  }
}

// What each part of the keys counts for in the whole, divided by the whole's sum: share [n_parts, lanes].
void shares(float* states, int64_t n_parts, int64_t lanes, int64_t dv, float* share) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    float top = -INFINITY, sum = 0;
    for (int64_t part = 0; part < n_parts; ++part)
      top = std::max(top, AttentionState(states + part * AttentionState::size(lanes, dv), lanes).m[lane]);
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

void CpuBackend::attend_absorbed(const MlaArgs& args, Slices slices, const float* q, float* attended) {
  const int64_t heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
  const int64_t q_head = nope + rope, v_head = args.v_head_dim;
  const int64_t n = slices.back()->out0 + slices.back()->n_out - slices.front()->out0;

  // Queries into the latent space, head by head: [heads, n, rank].
  heads_.resize(static_cast<size_t>(heads * n * std::max(nope, rank)));
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t t = 0; t < n; ++t)
      std::memcpy(heads_.data() + (h * n + t) * nope, q + (t * heads + h) * q_head, static_cast<size_t>(nope) * sizeof(float));
  Activations q_nope{heads_.data(), heads * n, nope, nope, {}};
  if (observer_) show_heads(args.k_b, heads_.data(), n);
  quantize_for(args.k_b, &q_nope, &q8_heads_);
  expanded_.resize(static_cast<size_t>(heads * n * rank));
  std::vector<Product> products;
  for (int64_t h = 0; h < heads; ++h)
    products.push_back({args.k_b.at(h), q_nope.rows(h * n, n), expanded_.data() + h * n * rank, rank, RowForm::absorbed});
  multiply(products, args.v_b.data);
  std::vector<int32_t> adapters;  // of the tokens
  for (const AttentionSlice* slice : slices) adapters.insert(adapters.end(), static_cast<size_t>(slice->n_out), slice->adapter);
  std::vector<SideRow> sides;
  for (int64_t h = 0; h < heads; ++h)
    add_side_rows(args.k_b.at(h), heads_.data() + h * n * nope, n, adapters.data(), expanded_.data() + h * n * rank, rank,
                  &sides);
  add_sides(std::move(sides));

  attend_latents(args, slices, q);

  // Back out of the latent space.
  Activations context{heads_.data(), heads * n, rank, rank, {}};
  if (observer_) show_heads(args.v_b, heads_.data(), n);
  quantize_for(args.v_b, &context, &q8_heads_);
  products.clear();
  for (int64_t h = 0; h < heads; ++h)
    products.push_back({args.v_b.at(h), context.rows(h * n, n), attended + h * v_head, heads * v_head, RowForm::absorbed});
  multiply(products, args.o.data);
  sides.clear();
  for (int64_t h = 0; h < heads; ++h)
    add_side_rows(args.v_b.at(h), heads_.data() + h * n * rank, n, adapters.data(), attended + h * v_head, heads * v_head,
                  &sides);
  add_sides(std::move(sides));
}

std::vector<CpuBackend::LatentTiles> CpuBackend::lay_out_tiles(const MlaArgs& args, Slices slices) {
  const int64_t heads = args.num_heads, half = kernels_.tile_lanes / 2;
  std::vector<LatentTiles> found;
  for (const AttentionSlice* slice : slices) {
    const bool bytes = slice->cache.type == KvType::q8_0 && kernels_.latent_block_q8 && !float_activations_;
    const bool bf16 = slice->cache.type == KvType::f16 && kernels_.latent_block_f16 && attends_in_bf16(args, slice->cache);
    const int64_t lanes = bytes ? kLatentLanes : slice->n_out * heads <= half ? half : kernels_.tile_lanes;
    auto alike = std::find_if(found.begin(), found.end(), [&](const LatentTiles& tiles) {
      return tiles.bytes == bytes && tiles.bf16 == bf16 && tiles.lanes == lanes;
    });
    if (alike == found.end()) alike = found.insert(found.end(), {bytes, bf16, lanes, {}});
    // Weights of bytes are taken relative to the largest scale in their block of keys: keys that a row does not see must not be
    // there.
    const int64_t max_tokens = bytes ? 1 : std::max<int64_t>(1, lanes / heads);
    add_tiles(*slice, slice->out0 - slices.front()->out0, heads, lanes, max_tokens, &alike->tiles);
  }
  return found;
}

// The queries' latent parts in `expanded_` [heads, n, rank] -> what they gather of the latents, in heads_ [heads, n, rank].
void CpuBackend::attend_latents(const MlaArgs& args, Slices slices, const float* q) {
  std::vector<int32_t> positions;
  for (const AttentionSlice* slice : slices)
    positions.insert(positions.end(), slice->positions + (slice->n - slice->n_out), slice->positions + slice->n);
  for (LatentTiles& tiles : lay_out_tiles(args, slices)) {
    std::vector<LatentTile>& all = tiles.tiles;
    const int64_t state_size = AttentionState::size(tiles.lanes, args.kv_lora_rank);
    for (size_t first = 0, last = 0; first < all.size(); first = last) {
      int64_t n_tasks = 0;
      for (; last < all.size() && (last == first || (n_tasks + all[last].n_splits) * state_size <= kStateFloats); ++last) {
        all[last].task0 = n_tasks;
        n_tasks += all[last].n_splits;
      }
      attend_group(args, tiles, std::span(all).subspan(first, last - first), positions.data(),
                   static_cast<int64_t>(positions.size()), q);
    }
  }
}

// Tiles whose states fit the scratch together, of n tokens at `positions`.
void CpuBackend::attend_group(const MlaArgs& args, const LatentTiles& tiles, std::span<LatentTile> group,
                              const int32_t* positions, int64_t n, const float* q) {
  const int64_t heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
  const int64_t width = rank + rope, q_head = nope + rope, lanes = tiles.lanes, n_tiles = static_cast<int64_t>(group.size());
  const int64_t n_tasks = group.back().task0 + group.back().n_splits;
  latent_.resize(static_cast<size_t>(n_tiles * width * lanes));
  for_rows(n_tiles, width * lanes, [&](int64_t i) {
    const LatentTile& tile = group[static_cast<size_t>(i)];
    float* q_t = latent_.data() + i * width * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      if (lane >= tile.n_lanes()) {
        for (int64_t d = 0; d < width; ++d) q_t[d * lanes + lane] = 0.0f;
        continue;
      }
      const int64_t t = tile.token(lane), h = tile.head(lane);
      const float *latent = expanded_.data() + (h * n + t) * rank, *pe = q + (t * heads + h) * q_head + nope;
      for (int64_t d = 0; d < rank; ++d) q_t[d * lanes + lane] = latent[d] * args.scale;
      for (int64_t d = 0; d < rope; ++d) q_t[(rank + d) * lanes + lane] = pe[d] * args.scale;
    }
  });
  if (tiles.bytes) quantize_queries(KvRow(KvType::q8_0, rank, rope), rank, rope, n_tiles);
  if (tiles.bf16) {
    bf16_queries_.resize(static_cast<size_t>(n_tiles * width * lanes));
    for_rows(n_tiles, width * lanes, [&](int64_t i) {
      kernels_.bf16_pairs_from_f32(latent_.data() + i * width * lanes, lanes, width, lanes, 1.0f,
                                   bf16_queries_.data() + i * width * lanes, lanes);
    });
  }
  states_.resize(static_cast<size_t>(n_tasks * AttentionState::size(lanes, rank)));
  pool_.parallel_for(n_tasks, [&](int64_t task, int thread) {
    const auto tile =
        std::upper_bound(group.begin(), group.end(), task, [](int64_t t, const LatentTile& other) { return t < other.task0; }) -
        1;
    attend_split(args, tiles, *tile, positions, tile - group.begin(), task - tile->task0, thread);
  });
  merge_splits(tiles, group, n, rank);
}

// One part of the keys of one tile.
void CpuBackend::attend_split(const MlaArgs& args, const LatentTiles& tiles, const LatentTile& tile, const int32_t* positions,
                              int64_t index, int64_t split, int thread) {
  const int64_t rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, width = rank + rope, lanes = tiles.lanes;
  const KvRow row(tile.cache.type, rank, rope);
  AttentionState state(states_.data() + (tile.task0 + split) * AttentionState::size(lanes, rank), lanes);
  state.clear(lanes, rank);
  AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
  scratch.resize(static_cast<size_t>(std::max({kMaxAttentionKeys * (width + lanes), latent_q8_scratch_floats(row.n_blocks),
                                               latent_f16_scratch_floats(lanes, rank, rope)})));
  int32_t last_key[64];
  for (int64_t lane = 0; lane < lanes; ++lane) last_key[lane] = positions[tile.token(std::min(lane, tile.n_lanes() - 1))];
  const int64_t first = split * tile.split_keys, end = std::min(tile.end, first + tile.split_keys);
  if (tiles.bytes) {
    LatentBlockQ8 block{};
    block.q = q8_queries_.q.data() + index * row.n_blocks * 32 * lanes;
    block.q_scale = q8_queries_.scale.data() + index * row.n_blocks * lanes;
    block.q_sum = q8_queries_.sum.data() + index * row.n_blocks * lanes;
    block.row_bytes = row.bytes;
    block.n_blocks = row.n_blocks;
    block.dv = rank;
    block.scratch = scratch.data();
    for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
      block.rows = tile.cache.row(key);
      const bool more = key + block.n_keys < end;
      block.ahead = more ? latents_ahead(tile.cache, key + block.n_keys, end)
                         : latents_ahead(tile.cache, (split + pool_.n_threads()) * tile.split_keys, tile.end);
      kernels_.latent_block_q8(block);
    });
  } else if (tiles.bf16) {
    LatentBlockF16 block{};
    block.lanes = lanes;
    block.q_t = bf16_queries_.data() + index * width * lanes;
    block.rank = block.dv = rank;
    block.rope = rope;
    block.scratch = scratch.data();
    for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
      block.rows = reinterpret_cast<const uint16_t*>(tile.cache.row(key));
      block.ahead = latents_ahead(tile.cache, key + block.n_keys, end);
      kernels_.latent_block_f16(block);
    });
  } else {
    AttentionBlock block{};
    block.lanes = lanes;
    block.q_t = latent_.data() + index * width * lanes;
    block.dk1 = block.ldk1 = block.ldv = width;
    block.dv = rank;
    block.scores = scratch.data() + kMaxAttentionKeys * width;
    for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
      block.k1 = block.v = latent_rows(tile.cache, rank, rope, key, block.n_keys, scratch.data());
      kernels_.attention_block(block);
    });
  }
}

// The parts of each tile together, in heads_ [heads, n, rank].
void CpuBackend::merge_splits(const LatentTiles& tiles, std::span<const LatentTile> group, int64_t n, int64_t rank) {
  const int64_t lanes = tiles.lanes, state_size = AttentionState::size(lanes, rank), n_parts = ceil_div(rank, kMergedDims);
  const int64_t n_tasks = group.back().task0 + group.back().n_splits,
                splits_of_one = n_tasks / static_cast<int64_t>(group.size()) + 1;
  shares_.resize(static_cast<size_t>(n_tasks * lanes));
  for_rows(static_cast<int64_t>(group.size()), splits_of_one * lanes * 32, [&](int64_t i) {
    const LatentTile& tile = group[static_cast<size_t>(i)];
    shares(states_.data() + tile.task0 * state_size, tile.n_splits, lanes, rank, shares_.data() + tile.task0 * lanes);
  });
  for_rows(static_cast<int64_t>(group.size()) * n_parts, splits_of_one * kMergedDims * lanes, [&](int64_t task) {
    const LatentTile& tile = group[static_cast<size_t>(task / n_parts)];
    const int64_t d0 = task % n_parts * kMergedDims, dims = std::min(kMergedDims, rank - d0);
    float sum[kMergedDims * 64] = {};
    for (int64_t split = tile.task0; split < tile.task0 + tile.n_splits; ++split) {
      const float* o = AttentionState(states_.data() + split * state_size, lanes).o + d0 * lanes;
      const float* share = shares_.data() + split * lanes;
      for (int64_t d = 0; d < dims; ++d)
        for (int64_t lane = 0; lane < lanes; ++lane) sum[d * lanes + lane] += o[d * lanes + lane] * share[lane];
    }
    for (int64_t lane = 0; lane < tile.n_lanes(); ++lane)
      for (int64_t d = 0; d < dims; ++d)
        heads_[static_cast<size_t>((tile.head(lane) * n + tile.token(lane)) * rank + d0 + d)] = sum[d * lanes + lane];
  });
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
        for (int64_t four = 0; four < 8; ++four)
          std::memcpy(q8_queries_.q.data() + ((first * 8 + four) * lanes + lane) * 4, block.q + 4 * four, 4);
        q8_queries_.scale.data()[first * lanes + lane] = block.scale;
        q8_queries_.sum.data()[first * lanes + lane] = block.isum;
      }
    }
  });
}

}  // namespace kimi::cpu
