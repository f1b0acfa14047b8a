// Attention with an online softmax in floats: a block takes 16 queries, keys come in tiles, and no matrix of scores exists. What
// a query, a key and a value are is said by a source:
//   LatentSource   the heads of one token over the rows of the paged latent cache, whose beginning is the value too
//   PictureSource  patches of one head over all patches
#pragma once
#include "backend/cuda/kernels/math.h"
#include "backend/cuda/kernels/rows.h"
#include "backend/kv_view.h"

namespace kimi::cuda {

constexpr int kQueries = 16, kKeysOfTile = 16, kAttentionThreads = kQueries * kKeysOfTile;

template <int kWidth>  // numbers of a key
struct AttentionShared {
  float query[kQueries][kWidth + 1];  // odd strides: keys of a warp lie in different banks
  float key[kKeysOfTile][kWidth + 1];
  float weight[kQueries][kKeysOfTile + 1];
  float factor[kQueries];
  float top[kQueries], total[kQueries];
};

template <typename Source>
__device__ __forceinline__ void attend(const Source& source, AttentionShared<Source::kWidth>& shared) {
  constexpr int kDims = (Source::kValueWidth + kAttentionThreads - 1) / kAttentionThreads;
  const int thread = static_cast<int>(threadIdx.x), query = thread / kKeysOfTile, key = thread % kKeysOfTile;
  const int width = source.width(), value_width = source.value_width(), end = source.end();
  for (int i = thread; i < kQueries * width; i += kAttentionThreads) {
    const int q = i / width, d = i % width;
    shared.query[q][d] = q < source.n_queries() ? source.query(q, d) : 0.0f;
  }
  if (thread < kQueries) {
    shared.top[thread] = -INFINITY;
    shared.total[thread] = 0.0f;
  }
  float sum[kQueries][kDims] = {};
  for (int first = source.begin(); first < end; first += kKeysOfTile) {
    const int n_keys = end - first < kKeysOfTile ? end - first : kKeysOfTile;
    for (int i = thread; i < kKeysOfTile * width; i += kAttentionThreads) {
      const int k = i / width, d = i % width;
      shared.key[k][d] = k < n_keys ? source.key(first + k, d) : 0.0f;
    }
    block_sync();
    float score = -INFINITY;
    if (key < n_keys) {
      float dot = 0.0f;
      for (int d = 0; d < width; ++d) dot = fused(shared.query[query][d], shared.key[key][d], dot);
      score = dot * source.scale();
    }
    const float before = shared.top[query], best = warp_max<kKeysOfTile>(score), top = best > before ? best : before;
    const float weight = key < n_keys ? exponential(score - top) : 0.0f;
    const float tile_total = warp_sum<kKeysOfTile>(weight);
    shared.weight[query][key] = weight;
    warp_sync();  // all lanes have read the maximum
    if (key == 0) {
      const float factor = before == -INFINITY ? 0.0f : exponential(before - top);
      shared.factor[query] = factor;
      shared.total[query] = fused(shared.total[query], factor, tile_total);
      shared.top[query] = top;
    }
    source.load_values(shared, first, n_keys, thread);
    block_sync();
    KIMI_UNROLL
    for (int q = 0; q < kQueries; ++q) {
      const float factor = shared.factor[q];
      KIMI_UNROLL
      for (int i = 0; i < kDims; ++i) sum[q][i] *= factor;
    }
    for (int k = 0; k < n_keys; ++k) {
      KIMI_UNROLL
      for (int i = 0; i < kDims; ++i) {
        const int d = thread + i * kAttentionThreads;
        const float value = d < value_width ? shared.key[k][d] : 0.0f;
        KIMI_UNROLL
        for (int q = 0; q < kQueries; ++q) sum[q][i] = fused(shared.weight[q][k], value, sum[q][i]);
      }
    }
    block_sync();  // before the next keys overwrite these
  }
  KIMI_UNROLL
  for (int q = 0; q < kQueries; ++q) {
    KIMI_UNROLL
    for (int i = 0; i < kDims; ++i) {
      const int d = thread + i * kAttentionThreads;
      if (q < source.n_queries() && d < value_width) source.store(q, d, sum[q][i], shared.total[q]);
    }
  }
  if (thread < source.n_queries()) source.store_state(thread, shared.top[thread], shared.total[thread]);
}

// ---- the latent cache --------------------------------------------------------------------------------------------------------
// One layer of the caches of a run of rows that store alike. Of every row: which pages, and its position.
struct CacheArgs {
  const uint64_t* pages;      // addresses, of all slices
  const int* first_page;      // [n_rows] of the row's slice in pages
  const int* positions;       // [n_rows]
  int64_t layer_offset;       // of the layer in a page, in bytes
  int row_bytes, rank, rope;  // of one position
};

__device__ __forceinline__ uint8_t* cache_row(const CacheArgs& cache, int row, int position) {
  const uint64_t page = cache.pages[cache.first_page[row] + position / static_cast<int>(kPagePositions)];
  return reinterpret_cast<uint8_t*>(page) + cache.layer_offset +
         static_cast<int64_t>(position % static_cast<int>(kPagePositions)) * cache.row_bytes;
}

// Number d of a stored row: of the latent, then of the rotated key.
template <KvType type>
__device__ __forceinline__ float cached_number(const uint8_t* row, const CacheArgs& cache, int d) {
  if constexpr (type == KvType::f32) return reinterpret_cast<const float*>(row)[d];
  if constexpr (type == KvType::f16) return float_from_f16(reinterpret_cast<const uint16_t*>(row)[d]);
  const int latent = (cache.rank + 63) / 64 * 64, rope = (cache.rope + 31) / 32 * 32;
  const int at = d < cache.rank ? d : latent + d - cache.rank;
  const auto* scales = reinterpret_cast<const uint16_t*>(row + latent + rope);
  return static_cast<float>(static_cast<int>(row[at]) - 128) * float_from_f16(scales[at / 32]);
}

// Keys of a task, as on the CPU: it follows from the row's position alone, so results depend on nothing else in the batch.
__host__ __device__ inline int split_keys_of(int n_keys) {
  const int size = (n_keys + 8 * 64 - 1) / (8 * 64) * 64;
  return size < 64 ? 64 : size > 512 ? 512 : size;
}

struct LatentArgs {
  CacheArgs cache;
  const float* q;   // [n, heads, rank + rope]
  const int* rows;  // row of the batch for each of n
  int heads, max_splits;
  float scale;
  float* context;  // [n, max_splits, heads, rank], divided by nothing
  float* state;    // [n, max_splits, heads, 2]: maximum and sum
};

template <KvType type>
struct LatentSource {
  static constexpr int kWidth = 576, kValueWidth = 512;
  const LatentArgs& args;
  int token, split, head0, row, first, last;

  __device__ __forceinline__ int width() const { return args.cache.rank + args.cache.rope; }
  __device__ __forceinline__ int value_width() const { return args.cache.rank; }
  __device__ __forceinline__ int begin() const { return first; }
  __device__ __forceinline__ int end() const { return last; }
  __device__ __forceinline__ int n_queries() const { return args.heads - head0 < kQueries ? args.heads - head0 : kQueries; }
  __device__ __forceinline__ float scale() const { return args.scale; }
  __device__ __forceinline__ float query(int q, int d) const {
    return args.q[(static_cast<int64_t>(token) * args.heads + head0 + q) * width() + d];
  }
  __device__ __forceinline__ float key(int k, int d) const {
    return cached_number<type>(cache_row(args.cache, row, k), args.cache, d);
  }
  template <typename Shared>
  __device__ __forceinline__ void load_values(Shared&, int, int, int) const {}  // the keys are the values
  __device__ __forceinline__ int64_t place(int q) const {
    return (static_cast<int64_t>(token) * args.max_splits + split) * args.heads + head0 + q;
  }
  __device__ __forceinline__ void store(int q, int d, float sum, float) const {
    args.context[place(q) * args.cache.rank + d] = sum;
  }
  __device__ __forceinline__ void store_state(int q, float top, float total) const {
    args.state[place(q) * 2] = top;
    args.state[place(q) * 2 + 1] = total;
  }
};

// A block for each token, split of its keys and 16 heads.
template <KvType type>
__global__ void __launch_bounds__(kAttentionThreads) attend_latents(LatentArgs args) {
  auto& shared = shared_storage<AttentionShared<LatentSource<type>::kWidth>>();
  dependency_wait();
  const int token = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y), row = args.rows[token];
  const int n_keys = args.cache.positions[row] + 1, size = split_keys_of(n_keys), first = split * size;
  if (first >= n_keys) return;
  const int last = first + size < n_keys ? first + size : n_keys;
  attend(LatentSource<type>{args, token, split, static_cast<int>(blockIdx.z) * kQueries, row, first, last}, shared);
}

// The splits of each token and head together, in order: context [n, heads, rank].
struct MergeArgsOfSplits {
  const float *context, *state;  // as LatentArgs has them
  const int *rows, *positions;
  int heads, rank, max_splits;
  float* out;
};
static __global__ void __launch_bounds__(128) merge_splits(MergeArgsOfSplits args) {
  dependency_wait();
  const int token = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int n_keys = args.positions[args.rows[token]] + 1, size = split_keys_of(n_keys), n_splits = (n_keys + size - 1) / size;
  const auto place = [&](int split) { return (static_cast<int64_t>(token) * args.max_splits + split) * args.heads + head; };
  float top = -INFINITY, total = 0.0f;
  for (int s = 0; s < n_splits; ++s) top = args.state[place(s) * 2] > top ? args.state[place(s) * 2] : top;
  for (int s = 0; s < n_splits; ++s)
    total = fused(exponential(args.state[place(s) * 2] - top), args.state[place(s) * 2 + 1], total);
  for (int d = static_cast<int>(threadIdx.x); d < args.rank; d += 128) {
    float sum = 0.0f;
    for (int s = 0; s < n_splits; ++s)
      sum = fused(args.context[place(s) * args.rank + d], exponential(args.state[place(s) * 2] - top) / total, sum);
    args.out[(static_cast<int64_t>(token) * args.heads + head) * args.rank + d] = sum;
  }
}

// ---- new rows of the cache, and rotated queries
// --------------------------------------------------------------------------------
struct AppendArgs {
  CacheArgs cache;
  int row0;              // the first row of the batch that this launch writes
  const float* ckv;      // [n_rows, rank + rope]
  const float* norm;     // [rank]
  const float* cos_sin;  // [n_rows, rope / 2, 2]
  float eps;
};
constexpr int kMaxCached = 640;  // numbers of a row as it is stored
struct AppendShared {
  float partial[4];
  float numbers[kMaxCached];
};
// A block for each row.
template <KvType type>
__global__ void __launch_bounds__(128) append_latents(AppendArgs args) {
  auto& shared = shared_storage<AppendShared>();
  dependency_wait();
  const int row = args.row0 + static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int rank = args.cache.rank, rope = args.cache.rope, width = rank + rope;
  const int latent = type == KvType::q8_0 ? (rank + 63) / 64 * 64 : rank,
            n = type == KvType::q8_0 ? latent + (rope + 31) / 32 * 32 : width;
  const float* x = args.ckv + static_cast<int64_t>(row) * width;
  float sum = 0.0f;
  for (int i = thread; i < rank; i += 128) sum = fused(x[i], x[i], sum);
  sum = warp_sum(sum);
  if (lane_id() == 0) shared.partial[warp_id()] = sum;
  for (int i = thread; i < n; i += 128) shared.numbers[i] = 0.0f;  // what lies behind the latent and the key
  block_sync();
  float total = 0.0f;
  for (int w = 0; w < 4; ++w) total += shared.partial[w];
  const float scale = 1.0f / square_root(total / static_cast<float>(rank) + args.eps);
  for (int i = thread; i < rank; i += 128) shared.numbers[i] = x[i] * scale * args.norm[i];
  for (int i = thread; i < rope / 2; i += 128) {
    const float a = x[rank + 2 * i], b = x[rank + 2 * i + 1];
    const float *turn = args.cos_sin + (static_cast<int64_t>(row) * (rope / 2) + i) * 2, c = turn[0], s = turn[1];
    shared.numbers[latent + 2 * i] = a * c - b * s;
    shared.numbers[latent + 2 * i + 1] = a * s + b * c;
  }
  block_sync();
  uint8_t* to = cache_row(args.cache, row, args.cache.positions[row]);
  if constexpr (type == KvType::q8_0) {
    auto* scales = reinterpret_cast<uint16_t*>(to + n);
    for (int b = thread; b < n / 32; b += 128) {
      uint32_t largest = 0;
      for (int i = 0; i < 32; ++i) {
        const uint32_t bits = bits_of(shared.numbers[32 * b + i]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
      }
      const float inverse = inverse_of_largest(largest);
      for (int i = 0; i < 32; ++i)
        to[32 * b + i] = static_cast<uint8_t>(round_to_int8(shared.numbers[32 * b + i], inverse) + 128);
      scales[b] = f16_from_float(float_from_bits(largest) / 127.0f);
    }
  } else {
    for (int i = thread; i < n; i += 128) {
      if constexpr (type == KvType::f16)
        reinterpret_cast<uint16_t*>(to)[i] = f16_from_float(shared.numbers[i]);
      else
        reinterpret_cast<float*>(to)[i] = shared.numbers[i];
    }
  }
}

// The rotated part of every query: q [n, heads, nope + rope] -> out [n, heads, rank + rope], behind the latent.
struct RotateArgs {
  const float *q, *cos_sin;  // cos_sin [n_rows, rope / 2, 2]
  const int* rows;           // row of the batch for each of n
  int64_t n;
  int heads, nope, rope, rank;
  float* out;
};
static __global__ void __launch_bounds__(128) rotate_queries(RotateArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x, pairs = args.rope / 2;
  if (index >= args.n * args.heads * pairs) return;
  const int64_t head = index / pairs, pair = index % pairs, row = args.rows[head / args.heads];
  const float* x = args.q + head * (args.nope + args.rope) + args.nope + 2 * pair;
  const float a = x[0], b = x[1], c = args.cos_sin[(row * pairs + pair) * 2], s = args.cos_sin[(row * pairs + pair) * 2 + 1];
  float* out = args.out + head * (args.rank + args.rope) + args.rank + 2 * pair;
  out[0] = a * c - b * s;
  out[1] = a * s + b * c;
}

// ---- pictures ----------------------------------------------------------------------------------------------------------------
struct RotatePatchesArgs {
  float* x;              // [n, hidden], in place
  const float* cos_sin;  // [n, head_dim / 2, 2]
  int64_t n;
  int hidden, head_dim;
};
static __global__ void __launch_bounds__(128) rotate_patches(RotatePatchesArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x, pairs = args.hidden / 2;
  if (index >= args.n * pairs) return;
  const int64_t row = index / pairs, pair = index % pairs;
  float* x = args.x + row * args.hidden + 2 * pair;
  const float* turn = args.cos_sin + row * args.head_dim + pair % (args.head_dim / 2) * 2;
  const float a = x[0], b = x[1], c = turn[0], s = turn[1];
  x[0] = a * c - b * s;
  x[1] = a * s + b * c;
}

struct PictureArgs {
  const float *q, *k, *v;  // [n, hidden]
  int n, hidden, head_dim;
  float scale;
  float* out;  // [n, hidden]
};
struct PictureSource {
  static constexpr int kWidth = 128, kValueWidth = 128;
  const PictureArgs& args;
  int head, query0;

  __device__ __forceinline__ int width() const { return args.head_dim; }
  __device__ __forceinline__ int value_width() const { return args.head_dim; }
  __device__ __forceinline__ int begin() const { return 0; }
  __device__ __forceinline__ int end() const { return args.n; }
  __device__ __forceinline__ int n_queries() const { return args.n - query0 < kQueries ? args.n - query0 : kQueries; }
  __device__ __forceinline__ float scale() const { return args.scale; }
  __device__ __forceinline__ int64_t at(int row, int d) const {
    return static_cast<int64_t>(row) * args.hidden + head * args.head_dim + d;
  }
  __device__ __forceinline__ float query(int q, int d) const { return args.q[at(query0 + q, d)]; }
  __device__ __forceinline__ float key(int k, int d) const { return args.k[at(k, d)]; }
  // In place of the keys, which all threads have to have read.
  template <typename Shared>
  __device__ __forceinline__ void load_values(Shared& shared, int first, int n_keys, int thread) const {
    block_sync();
    for (int i = thread; i < n_keys * args.head_dim; i += kAttentionThreads) {
      const int k = i / args.head_dim, d = i % args.head_dim;
      shared.key[k][d] = args.v[at(first + k, d)];
    }
  }
  __device__ __forceinline__ void store(int q, int d, float sum, float total) const { args.out[at(query0 + q, d)] = sum / total; }
  __device__ __forceinline__ void store_state(int, float, float) const {}
};

// A block for each 16 patches and head.
static __global__ void __launch_bounds__(kAttentionThreads) attend_picture(PictureArgs args) {
  auto& shared = shared_storage<AttentionShared<PictureSource::kWidth>>();
  dependency_wait();
  attend(PictureSource{args, static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.x) * kQueries}, shared);
}

}  // namespace kimi::cuda
