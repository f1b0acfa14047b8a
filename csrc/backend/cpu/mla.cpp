// Multi-head latent attention. Two forms of the same function:
//   absorbed  queries are taken into the latent space; one latent row is key and value of all heads (few new tokens)
//   expanded  keys and values of every head are made from the latents, block by block (long prompts)
// Per pair of query and key the expanded form costs 3.4 times less, but expanding a cached row costs as much as about
// 170 absorbed queries: the number of new tokens of the slice alone decides.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kExpandedFrom = 128;   // new tokens of a slice
constexpr int64_t kSplitTokens = 4;      // up to this many new tokens the keys are split over threads
constexpr int64_t kSplitKeys = 512;      // a fixed size: results never depend on the number of threads
constexpr int64_t kExpandedKeys = 512;   // keys that are expanded at a time
constexpr int64_t kMergedDims = 32;      // of the output that one task takes from all splits
constexpr int64_t kMaxRopeDim = 1024;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// The running state of one tile of queries: m [lanes], l [lanes], o [dv, lanes].
struct State {
  float *m, *l, *o;
  static int64_t size(int64_t lanes, int64_t dv) { return (2 + dv) * lanes; }
  State(float* memory, int64_t lanes) : m(memory), l(memory + lanes), o(memory + 2 * lanes) {}
  void clear(int64_t lanes, int64_t dv) {
    std::fill_n(m, lanes, -INFINITY);
    std::fill_n(l, (1 + dv) * lanes, 0.0f);
  }
};

// What each part of the keys counts for in the whole, divided by the whole's sum: share [n_parts, lanes].
void shares(float* states, int64_t n_parts, int64_t lanes, int64_t dv, float* share) {
  for (int64_t lane = 0; lane < lanes; ++lane) {
    float top = -INFINITY, sum = 0;
    for (int64_t part = 0; part < n_parts; ++part) top = std::max(top, State(states + part * State::size(lanes, dv), lanes).m[lane]);
    for (int64_t part = 0; part < n_parts; ++part) {
      const State state(states + part * State::size(lanes, dv), lanes);
      const float weight = state.l[lane] > 0 ? std::exp(state.m[lane] - top) : 0.0f;
      share[part * lanes + lane] = weight;
      sum += weight * state.l[lane];
    }
    for (int64_t part = 0; part < n_parts; ++part) share[part * lanes + lane] /= sum;
  }
}

}  // namespace

void CpuBackend::mla_attention(const MlaArgs& args) {
  KIMI_DCHECK(args.qk_rope_head_dim <= kMaxRopeDim);
  const int64_t q_dim = args.num_heads * (args.qk_nope_head_dim + args.qk_rope_head_dim);
  const int64_t width = args.kv_lora_rank + args.qk_rope_head_dim, v_dim = args.num_heads * args.v_head_dim;
  if (observer_) show({{&args.q, args.x, args.n, args.q.cols, nullptr}, {&args.kv_a, args.x, args.n, args.q.cols, nullptr}});
  Activations x{args.x, args.n, args.q.cols, args.q.cols, {}};
  if (uses_int8(args.q) || uses_int8(args.kv_a)) quantize(&x, &q8_x_);
  q_.resize(static_cast<size_t>(args.n * q_dim));
  ckv_.resize(static_cast<size_t>(args.n * width));
  attended_.resize(static_cast<size_t>(args.n * v_dim));
  multiply({{args.q, x, q_.data(), q_dim}, {args.kv_a, x, ckv_.data(), width}}, args.rows);
  append_to_cache(args, q_.data(), ckv_.data());
  for (const AttentionSlice& slice : *args.slices) {
    if (slice.n >= kExpandedFrom && !observer_)  // the expanded form multiplies k_b and v_b with every latent, attended to or not
      attend_expanded(args, slice, q_.data() + slice.row0 * q_dim, attended_.data() + slice.row0 * v_dim);
    else
      attend_absorbed(args, slice, q_.data() + slice.row0 * q_dim, attended_.data() + slice.row0 * v_dim);
  }
  LinearArgs o{};
  o.x = attended_.data();
  o.n = args.n;
  o.w = args.o;
  o.add = true;
  o.out = args.out;
  o.rows = args.rows;
  linear(o);
}

// Rotates queries in place and writes the new latent rows. Angles are computed in double: at position 100,000 a float
// angle would be off by 0.004.
void CpuBackend::append_to_cache(const MlaArgs& args, float* q, const float* ckv) {
  const int64_t rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, head = args.qk_nope_head_dim + rope, width = rank + rope;
  for (const AttentionSlice& slice : *args.slices) {
    for_rows(slice.n, args.num_heads * head, [&](int64_t i) {
      const int64_t row = slice.row0 + i, position = slice.past + i;
      float cos_sin[kMaxRopeDim];
      for (int64_t j = 0; j < rope / 2; ++j) {
        const double angle = static_cast<double>(position) * args.rope_inv_freq[j];
        cos_sin[2 * j] = static_cast<float>(std::cos(angle)) * args.rope_mscale;
        cos_sin[2 * j + 1] = static_cast<float>(std::sin(angle)) * args.rope_mscale;
      }
      for (int64_t h = 0; h < args.num_heads; ++h)
        kernels_.rotate_pairs(q + row * args.num_heads * head + h * head + args.qk_nope_head_dim, cos_sin, rope / 2);
      std::vector<float> latent(static_cast<size_t>(width));
      kernels_.rms_norm(ckv + row * width, args.kv_a_norm, args.kv_a_norm_eps, rank, latent.data());
      std::memcpy(latent.data() + rank, ckv + row * width + rank, static_cast<size_t>(rope) * sizeof(float));
      kernels_.rotate_pairs(latent.data() + rank, cos_sin, rope / 2);
      store_latent(slice.cache, rank, rope, position, latent.data());
    });
  }
}

void CpuBackend::store_latent(const KvLayer& cache, int64_t rank, int64_t rope, int64_t position, const float* latent) const {
  const KvRow row(cache.type, rank, rope);
  auto* to = static_cast<uint8_t*>(cache.data) + position * row.bytes;
  if (cache.type == KvType::f32) {
    std::memcpy(to, latent, static_cast<size_t>(row.bytes));
  } else if (cache.type == KvType::f16) {
    kernels_.f16_from_f32_row(latent, rank + rope, reinterpret_cast<uint16_t*>(to));
  } else {
    const int64_t n = row.latent + row.rope;
    std::vector<float> padded(static_cast<size_t>(n)), scale(static_cast<size_t>(n / 32)), sum(static_cast<size_t>(n / 16));
    std::vector<int32_t> isum(static_cast<size_t>(n / 16));
    std::copy_n(latent, rank, padded.data());
    std::copy_n(latent + rank, rope, padded.data() + row.latent);
    kernels_.quantize_row(padded.data(), n, reinterpret_cast<int8_t*>(to), scale.data(), sum.data(), isum.data());
    for (int64_t i = 0; i < n; ++i) to[i] ^= 0x80;
    kernels_.f16_from_f32_row(scale.data(), row.n_blocks, reinterpret_cast<uint16_t*>(to + n));
  }
}

// Rows [first, first + n) of the cache as floats, [n, rank + rope]; `scratch` is used when they have to be converted.
const float* CpuBackend::latent_rows(const KvLayer& cache, int64_t rank, int64_t rope, int64_t first, int64_t n, float* scratch) const {
  const KvRow row(cache.type, rank, rope);
  const auto* from = static_cast<const uint8_t*>(cache.data) + first * row.bytes;
  if (cache.type == KvType::f32) return reinterpret_cast<const float*>(from);
  if (cache.type == KvType::f16) {
    kernels_.f32_from_f16_row(reinterpret_cast<const uint16_t*>(from), n * (rank + rope), scratch);
    return scratch;
  }
  for (int64_t i = 0; i < n; ++i, from += row.bytes) {
    const auto* scales = reinterpret_cast<const uint16_t*>(from + row.latent + row.rope);
    float* to = scratch + i * (rank + rope);
    kernels_.f32_from_q8_row(from, scales, rank, to);
    kernels_.f32_from_q8_row(from + row.latent, scales + row.latent / 32, rope, to + rank);
  }
  return scratch;
}

void CpuBackend::attend_absorbed(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended) {
  const int64_t n = slice.n, heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
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
  multiply(products, args.rows);

  // Queries side by side: lane = token * heads + head.
  const KvRow row(slice.cache.type, rank, rope);
  const bool bytes = slice.cache.type == KvType::q8_0 && kernels_.latent_block_q8 && !float_activations_;
  const int64_t n_lanes = n * heads, half = kernels_.tile_lanes / 2;
  const int64_t lanes = bytes ? kLatentLanes : n_lanes <= half ? half : kernels_.tile_lanes;
  const int64_t n_tiles = ceil_div(n_lanes, lanes), total = slice.past + n;
  const int64_t n_splits = n <= kSplitTokens ? ceil_div(total, kSplitKeys) : 1, split_keys = n_splits > 1 ? kSplitKeys : total;
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

  const int64_t state_size = State::size(lanes, rank);
  states_.resize(static_cast<size_t>(n_tiles * n_splits * state_size));
  pool_.parallel_for(n_tiles * n_splits, [&](int64_t task, int thread) {
    const int64_t tile = task / n_splits, split = task % n_splits;
    State state(states_.data() + task * state_size, lanes);
    state.clear(lanes, rank);
    AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
    scratch.resize(static_cast<size_t>(std::max(kMaxAttentionKeys * (width + lanes), latent_scratch_floats(row.n_blocks))));
    int32_t last_key[64];
    for (int64_t lane = 0; lane < lanes; ++lane)
      last_key[lane] = static_cast<int32_t>(slice.past + std::min(tile * lanes + lane, n_lanes - 1) / heads);
    const int64_t end = std::min<int64_t>({total, (split + 1) * split_keys, last_key[lanes - 1] + 1});
    if (bytes) {
      const auto* rows = static_cast<const uint8_t*>(slice.cache.data);
      LatentBlockQ8 block{};
      block.q = q8_latent_.q.data() + tile * row.n_blocks * 32 * lanes;
      block.q_scale = q8_latent_.scale.data() + tile * row.n_blocks * lanes;
      block.q_sum = q8_latent_.isum.data() + tile * row.n_blocks * lanes;
      block.rows_end = rows + end * row.bytes;
      block.row_bytes = row.bytes;
      block.n_blocks = row.n_blocks;
      block.dv = rank;
      block.m = state.m;
      block.l = state.l;
      block.o_t = state.o;
      block.scratch = scratch.data();
      for (int64_t key = split * split_keys; key < end; key += kMaxAttentionKeys) {
        block.rows = rows + key * row.bytes;
        block.key0 = key;
        block.n_keys = std::min(kMaxAttentionKeys, end - key);
        block.last_key = key + block.n_keys - 1 > last_key[0] ? last_key : nullptr;
        kernels_.latent_block_q8(block);
      }
      return;
    }
    AttentionBlock block{};
    block.lanes = lanes;
    block.q_t = latent_.data() + tile * width * lanes;
    block.dk1 = block.ldk1 = block.ldv = width;
    block.dv = rank;
    block.m = state.m;
    block.l = state.l;
    block.o_t = state.o;
    block.scores = scratch.data() + kMaxAttentionKeys * width;
    for (int64_t key = split * split_keys; key < end; key += kMaxAttentionKeys) {
      block.key0 = key;
      block.n_keys = std::min(kMaxAttentionKeys, end - key);
      block.k1 = block.v = latent_rows(slice.cache, rank, rope, key, block.n_keys, scratch.data());
      block.last_key = key + block.n_keys - 1 > last_key[0] ? last_key : nullptr;
      kernels_.attention_block(block);
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
      const float* o = State(states_.data() + (tile * n_splits + split) * state_size, lanes).o + d0 * lanes;
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
  multiply(products, args.rows);
}

// The tiles of queries in `latent_`, [n_tiles, rank + rope, lanes], as LatentBlockQ8 wants them, in q8_latent_.
void CpuBackend::quantize_queries(const KvRow& row, int64_t rank, int64_t rope, int64_t n_tiles) {
  constexpr int64_t lanes = kLatentLanes;
  const int64_t n = row.latent + row.rope, width = rank + rope;
  q8_latent_.q.resize(static_cast<size_t>(n_tiles * n * lanes));
  q8_latent_.scale.resize(static_cast<size_t>(n_tiles * row.n_blocks * lanes));
  q8_latent_.isum.resize(static_cast<size_t>(n_tiles * row.n_blocks * lanes));
  for_rows(n_tiles, n * lanes, [&](int64_t tile) {
    std::vector<float> one(static_cast<size_t>(n)), scale(static_cast<size_t>(n / 32)), sum(static_cast<size_t>(n / 16));
    std::vector<int32_t> isum(static_cast<size_t>(n / 16));
    std::vector<int8_t> q(static_cast<size_t>(n));
    const float* queries = latent_.data() + tile * width * lanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int64_t d = 0; d < rank; ++d) one[static_cast<size_t>(d)] = queries[d * lanes + lane];
      for (int64_t d = 0; d < rope; ++d) one[static_cast<size_t>(row.latent + d)] = queries[(rank + d) * lanes + lane];
      kernels_.quantize_row(one.data(), n, q.data(), scale.data(), sum.data(), isum.data());
      for (int64_t four = 0; four < n / 4; ++four)
        std::memcpy(q8_latent_.q.data() + ((tile * n / 4 + four) * lanes + lane) * 4, q.data() + 4 * four, 4);
      for (int64_t b = 0; b < row.n_blocks; ++b) {
        const int64_t at = (tile * row.n_blocks + b) * lanes + lane;
        q8_latent_.scale.data()[at] = scale[static_cast<size_t>(b)];
        q8_latent_.isum.data()[at] = isum[static_cast<size_t>(2 * b)] + isum[static_cast<size_t>(2 * b + 1)];
      }
    }
  });
}

void CpuBackend::attend_expanded(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended) {
  const int64_t n = slice.n, heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
  const int64_t width = rank + rope, q_head = nope + rope, v_head = args.v_head_dim, lanes = kernels_.tile_lanes, total = slice.past + n;
  const int64_t nope_pad = round_up(nope, lanes), v_pad = round_up(v_head, lanes), n_tiles = ceil_div(n, lanes);

  // Weights of all heads in float: k_b as stored, [heads, rank, nope_pad]; v_b in panels, [heads, v_pad / lanes, rank, lanes].
  const int64_t k_floats = rank * nope_pad, v_floats = rank * v_pad;
  packed_.resize(static_cast<size_t>(heads * (k_floats + v_floats)));
  float *k_weights = packed_.data(), *v_weights = k_weights + heads * k_floats;
  pool_.parallel_for(2 * heads, [&](int64_t task, int thread) {
    const int64_t h = task / 2;
    if (task % 2 == 0) {
      const Matrix k_b = args.k_b.at(h);
      for (int64_t c = 0; c < rank; ++c) {
        float* row = k_weights + h * k_floats + c * nope_pad;
        kernels_.decode_row[static_cast<int>(k_b.type)](k_b.data + c * k_b.row_bytes, row, nope);
        std::fill(row + nope, row + nope_pad, 0.0f);
      }
    } else {
      for (int64_t v0 = 0; v0 < v_head; v0 += lanes)
        pack_float(args.v_b.at(h), v0, lanes, &scratch_[static_cast<size_t>(thread)], v_weights + h * v_floats + v0 * rank);
    }
  });

  // Queries of (head, tile) side by side, scaled, and their states.
  const int64_t state_size = State::size(lanes, v_head);
  heads_.resize(static_cast<size_t>(heads * n_tiles * q_head * lanes));
  states_.resize(static_cast<size_t>(heads * n_tiles * state_size));
  pool_.parallel_for(heads * n_tiles, [&](int64_t task, int) {
    const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
    float* q_t = heads_.data() + task * q_head * lanes;
    kernels_.transpose_panel(q + (t0 * heads + h) * q_head, heads * q_head, std::min(lanes, n - t0), q_head, q_t);
    for (int64_t i = 0; i < q_head * lanes; ++i) q_t[i] *= args.scale;
    State(states_.data() + task * state_size, lanes).clear(lanes, v_head);
  });

  latent_.resize(static_cast<size_t>(kExpandedKeys * width));
  expanded_.resize(static_cast<size_t>(heads * kExpandedKeys * (nope_pad + v_pad)));
  for (int64_t first = 0; first < total; first += kExpandedKeys) {
    const int64_t n_keys = std::min(kExpandedKeys, total - first);
    const bool converts = slice.cache.type != KvType::f32;
    if (converts) for_rows(n_keys, width, [&](int64_t i) { latent_rows(slice.cache, rank, rope, first + i, 1, latent_.data() + i * width); });
    const float* latent = converts ? latent_.data() : latent_rows(slice.cache, rank, rope, first, n_keys, nullptr);
    float *keys = expanded_.data(), *values = keys + heads * kExpandedKeys * nope_pad;
    const int64_t blocks = ceil_div(n_keys, kMaxAttentionKeys);
    pool_.parallel_for(heads * blocks, [&](int64_t task, int) {
      const int64_t h = task / blocks, key0 = task % blocks * kMaxAttentionKeys, count = std::min(kMaxAttentionKeys, n_keys - key0);
      const float* rows = latent + key0 * width;
      for (int64_t d = 0; d < nope_pad; d += lanes)
        kernels_.gemm_f32(rows, width, 1, k_weights + h * k_floats + d, nope_pad, rank, count, keys + (h * kExpandedKeys + key0) * nope_pad + d,
                          nope_pad, false);
      for (int64_t d = 0; d < v_pad; d += lanes)
        kernels_.gemm_f32(rows, width, 1, v_weights + h * v_floats + d * rank, lanes, rank, count,
                          values + (h * kExpandedKeys + key0) * v_pad + d, v_pad, false);
    });
    pool_.parallel_for(heads * n_tiles, [&](int64_t task, int thread) {
      const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
      AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
      scratch.resize(static_cast<size_t>(kMaxAttentionKeys * lanes));
      int32_t last_key[64];
      for (int64_t lane = 0; lane < lanes; ++lane) last_key[lane] = static_cast<int32_t>(slice.past + std::min(t0 + lane, n - 1));
      const State state(states_.data() + task * state_size, lanes);
      AttentionBlock block{};
      block.lanes = lanes;
      block.q_t = heads_.data() + task * q_head * lanes;
      block.dk1 = nope;
      block.ldk1 = nope_pad;
      block.dk2 = rope;
      block.ldk2 = width;
      block.dv = v_head;
      block.ldv = v_pad;
      block.m = state.m;
      block.l = state.l;
      block.o_t = state.o;
      block.scores = scratch.data();
      const int64_t end = std::min<int64_t>(n_keys, last_key[lanes - 1] + 1 - first);
      for (int64_t key = 0; key < end; key += kMaxAttentionKeys) {
        block.key0 = first + key;
        block.n_keys = std::min(kMaxAttentionKeys, end - key);
        block.k1 = keys + (h * kExpandedKeys + key) * nope_pad;
        block.k2 = latent + key * width + rank;
        block.v = values + (h * kExpandedKeys + key) * v_pad;
        block.last_key = block.key0 + block.n_keys - 1 > last_key[0] ? last_key : nullptr;
        kernels_.attention_block(block);
      }
    });
  }
  pool_.parallel_for(heads * n_tiles, [&](int64_t task, int) {
    const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
    const State state(states_.data() + task * state_size, lanes);
    for (int64_t lane = 0; lane < std::min(lanes, n - t0); ++lane) {
      const float inverse = 1.0f / state.l[lane];
      float* out = attended + ((t0 + lane) * heads + h) * v_head;
      for (int64_t d = 0; d < v_head; ++d) out[d] = state.o[d * lanes + lane] * inverse;
    }
  });
}

}  // namespace kimi::cpu
