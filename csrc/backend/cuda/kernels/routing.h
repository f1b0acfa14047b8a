// Which experts a token visits, and the order in which (token, expert) pairs are computed: sorted by expert, tokens ascending.
#pragma once
#include "backend/cuda/kernels/math.h"
#include "backend/cuda/kernels/products.h"

namespace kimi::cuda {

constexpr int kMaxExperts = 1024, kMaxChosen = 32;

struct ChooseArgs {
  const float* logits;  // [n, n_experts]
  const float* bias;    // of the choice alone, [n_experts] or nullptr
  int n, n_experts, n_chosen;
  bool sigmoid, normalize;
  float scaling;
  int* experts;    // [n, n_chosen] ascending
  float* weights;  // [n, n_chosen]
};
struct ChooseShared {
  float score[kMaxExperts], choice[kMaxExperts];
  int expert[kMaxChosen];
  float weight[kMaxChosen];
};

// A warp for each token. Of equal choices the lower index wins; NaN loses to everything.
static __global__ void __launch_bounds__(kWarp) choose_experts(ChooseArgs args) {
  auto& shared = shared_storage<ChooseShared>();
  dependency_wait();
  const int token = static_cast<int>(blockIdx.x), lane = lane_id();
  const float* logits = args.logits + static_cast<int64_t>(token) * args.n_experts;
  float top = -INFINITY, total = 0.0f;
  if (!args.sigmoid) {
    for (int e = lane; e < args.n_experts; e += kWarp) top = logits[e] > top ? logits[e] : top;
    top = warp_max(top);
    for (int e = lane; e < args.n_experts; e += kWarp) total += exponential(logits[e] - top);
    total = warp_sum(total);
  }
  for (int e = lane; e < args.n_experts; e += kWarp) {
    const float score = args.sigmoid ? 1.0f / (1.0f + exponential(-logits[e])) : exponential(logits[e] - top) / total;
    const float biased = score + (args.bias ? args.bias[e] : 0.0f);
    shared.score[e] = score;
    shared.choice[e] = biased == biased ? biased : -INFINITY;
  }
  warp_sync();
  float sum = 0.0f;
  for (int i = 0; i < args.n_chosen; ++i) {
    float best = -INFINITY;
    int at = args.n_experts;  // none yet
    for (int e = lane; e < args.n_experts; e += kWarp) {
      bool taken = false;
      for (int k = 0; k < i; ++k) taken = taken || shared.expert[k] == e;
      if (!taken && (at == args.n_experts || shared.choice[e] > best)) {
        best = shared.choice[e];
        at = e;
      }
    }
    KIMI_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
      const float other = shuffle_xor(best, mask);
      const int other_at = static_cast<int>(shuffle_xor(static_cast<uint32_t>(at), mask));
      if (other_at < args.n_experts && (at == args.n_experts || other > best || (other == best && other_at < at))) {
        best = other;
        at = other_at;
      }
    }
    sum += shared.score[at];
    if (lane == 0) {
      shared.expert[i] = at;
      shared.weight[i] = shared.score[at];
    }
    warp_sync();
  }
  const float factor = args.scaling / (args.normalize ? sum + 1e-20f : 1.0f);
  if (lane >= args.n_chosen) return;
  int before = 0;
  for (int k = 0; k < args.n_chosen; ++k) before += shared.expert[k] < shared.expert[lane] ? 1 : 0;
  const int64_t to = static_cast<int64_t>(token) * args.n_chosen + before;
  args.experts[to] = shared.expert[lane];
  args.weights[to] = shared.weight[lane] * factor;
}

struct SortArgs {
  const int* experts;  // [n, n_chosen]
  int n, n_experts, n_chosen;
  int tile_rows, n_tiles;
  int* token_of_place;  // [n * n_chosen]
  int* place_of_pair;   // [n, n_chosen]
  Tile* tiles;          // [n_tiles]; those that are not needed are empty
};
struct SortShared {
  int first[kMaxExperts + 1], first_tile[kMaxExperts + 1];
};
constexpr int kSortThreads = 256;

// One block. Threads own experts and walk over all pairs.
static __global__ void __launch_bounds__(kSortThreads) sort_pairs(SortArgs args) {
  auto& shared = shared_storage<SortShared>();
  dependency_wait();
  const int thread = static_cast<int>(threadIdx.x), pairs = args.n * args.n_chosen;
  for (int e = thread; e < args.n_experts; e += kSortThreads) {
    int count = 0;
    for (int i = 0; i < pairs; ++i) count += args.experts[i] == e ? 1 : 0;
    shared.first[e + 1] = count;
  }
  block_sync();
  if (thread == 0) {
    shared.first[0] = shared.first_tile[0] = 0;
    for (int e = 0; e < args.n_experts; ++e) {
      const int count = shared.first[e + 1];
      shared.first_tile[e + 1] = shared.first_tile[e] + (count + args.tile_rows - 1) / args.tile_rows;
      shared.first[e + 1] = shared.first[e] + count;
    }
  }
  block_sync();
  for (int e = thread; e < args.n_experts; e += kSortThreads) {
    int place = shared.first[e];
    const int end = shared.first[e + 1];
    int tile = shared.first_tile[e];
    for (int first = place; first < end; first += args.tile_rows)
      args.tiles[tile++] = {e, first, end - first < args.tile_rows ? end - first : args.tile_rows};
    for (int i = 0; place < end; ++i) {
      if (args.experts[i] != e) continue;
      args.token_of_place[place] = i / args.n_chosen;
      args.place_of_pair[i] = place++;
    }
  }
  for (int t = shared.first_tile[args.n_experts] + thread; t < args.n_tiles; t += kSortThreads) args.tiles[t] = {0, 0, 0};
}

struct CombineArgs {
  const float *shared, *routed;  // [n, hidden] or nullptr; [n * n_chosen, hidden] by place
  const int* place_of_pair;      // [n, n_chosen]
  const float* weights;          // [n, n_chosen]
  int64_t n;
  int hidden, n_chosen;
  float* out;  // [n, hidden], added to
};
// A thread for each number: the shared experts first, then the routed ones by index.
static __global__ void __launch_bounds__(128) combine_experts(CombineArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * 128 + threadIdx.x;
  if (index >= args.n * args.hidden) return;
  const int64_t token = index / args.hidden, col = index % args.hidden;
  float sum = args.out[index];
  if (args.shared) sum += args.shared[index];
  for (int i = 0; i < args.n_chosen; ++i) {
    const int64_t pair = token * args.n_chosen + i;
    sum = fused(args.routed[args.place_of_pair[pair] * static_cast<int64_t>(args.hidden) + col], args.weights[pair], sum);
  }
  args.out[index] = sum;
}

}  // namespace kimi::cuda
