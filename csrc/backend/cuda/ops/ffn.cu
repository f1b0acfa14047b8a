// SwiGLU networks: dense, shared and routed. The experts of a token are chosen and sorted on the device.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/routing.h"
#include "backend/cuda/kernels/rows.h"
#include "base/error.h"

namespace kimi::cuda {

void CudaBackend::swiglu(const Swiglu& w, Rows* x, int64_t n_places, Placement in, Placement down, float* out) {
  const int64_t inner = w.gate.rows;
  quantize_for(w.gate, x, &q8_x_);
  quantize_for(w.up, x, &q8_x_);
  in.map.out_step = inner;
  auto *gate = scratch<float>(&gate_, n_places * inner), *up = scratch<float>(&inner_, n_places * inner);
  product(w.gate, *x, in, gate);
  product(w.up, *x, in, up);
  run_each("silu_multiply", silu_multiply, n_places * inner, gate, up, n_places * inner);
  Rows activated{up, n_places, inner, inner, {}};
  quantize_for(w.down, &activated, &q8_inner_);
  down.map.out_step = w.down.rows;
  product(w.down, activated, down, out);
}

void CudaBackend::ffn(const FfnArgs& args) {
  const Lock lock(device_.lock());
  for (const FfnArgs& part : by_form(args, args.w.gate.cols, args.w.down.rows)) ffn_of_form(part);
}

void CudaBackend::ffn_of_form(const FfnArgs& args) {
  const int64_t hidden = args.w.gate.cols, n_out = args.n * args.w.down.rows;
  Rows x{args.x, args.n, hidden, hidden, {}};
  auto* out = scratch<float>(&down_, n_out);
  Placement all = dense(args.n, 0);
  all.form = form_of(args.n_expanded);
  swiglu(args.w, &x, args.n, all, all, out);
  add(out, n_out, args.out);
}

void CudaBackend::moe_ffn(const MoeArgs& args) {
  const Lock lock(device_.lock());
  for (const MoeArgs& part : by_form(args, args.router.cols, args.router.cols)) moe_ffn_of_form(part);
}

// Router logits in float whatever the weights beside it; the bias takes part in the choice only.
void CudaBackend::moe_ffn_of_form(const MoeArgs& args) {
  const int64_t n = args.n, n_experts = args.router.rows, chosen = args.num_experts_per_tok, pairs = n * chosen,
                hidden = args.router.cols;
  KIMI_CHECK(n_experts <= kMaxExperts && chosen <= kMaxChosen, ErrorKind::unsupported, "device.experts",
             "the backend cuda knows at most %d experts of which %d are chosen, the model has %lld and %lld: use the device cpu",
             kMaxExperts, kMaxChosen, static_cast<long long>(n_experts), static_cast<long long>(chosen));
  Rows x{args.x, n, hidden, hidden, {}};
  auto* logits = scratch<float>(&logits_, n * n_experts);
  product_of_floats(args.router, x, dense(n, n_experts), logits);

  const RowForm form = form_of(args.n_expanded);
  Placement routed{};
  routed.tile_rows = tile_rows_for(args.routed, form, pairs / n_experts);
  routed.n_tiles = pairs / routed.tile_rows + std::min(n_experts, pairs);
  // Of every pair: expert, weight, token by place, place; then the tiles.
  auto* numbers = scratch<int>(&routing_, 4 * pairs + 3 * routed.n_tiles);
  int *experts = numbers, *token_of_place = numbers + 2 * pairs, *place_of_pair = numbers + 3 * pairs;
  auto* weights = reinterpret_cast<float*>(numbers + pairs);
  auto* tiles = reinterpret_cast<Tile*>(numbers + 4 * pairs);
  run("choose_experts", choose_experts, dim3(static_cast<unsigned>(n)), kWarp, sizeof(ChooseShared),
      ChooseArgs{logits, args.selection_bias, static_cast<int>(n), static_cast<int>(n_experts), static_cast<int>(chosen),
                 args.sigmoid, args.norm_topk_prob, args.routed_scaling_factor, experts, weights});
  run("sort_pairs", sort_pairs, dim3(1), kSortThreads, sizeof(SortShared),
      SortArgs{experts, static_cast<int>(n), static_cast<int>(n_experts), static_cast<int>(chosen),
               static_cast<int>(routed.tile_rows), static_cast<int>(routed.n_tiles), token_of_place, place_of_pair, tiles});

  routed.map.n = static_cast<int>(pairs);
  routed.map.tiles = tiles;
  routed.map.x_rows = token_of_place;
  Placement down = routed;
  down.map.x_rows = nullptr;
  down.map.x_step = 1;
  auto* out = scratch<float>(&down_, pairs * hidden);
  swiglu(args.routed, &x, pairs, routed, down, out);
  float* shared = nullptr;
  if (args.shared.down) {
    shared = scratch<float>(&shared_, n * hidden);
    Placement all = dense(n, 0);
    all.form = form;
    swiglu(args.shared, &x, n, all, all, shared);
  }
  run_each("combine_experts", combine_experts, n * hidden,
           CombineArgs{shared, out, place_of_pair, weights, n, static_cast<int>(hidden), static_cast<int>(chosen), args.out});
}

}  // namespace kimi::cuda
