// Multi-head latent attention over pages, in the latent space for rows of both forms: one latent row is key and value of all
// heads.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/attention.h"
#include "base/error.h"

namespace kimi::cuda {
namespace {

constexpr int64_t kStateFloats = 16 << 20;  // of all splits that are worked on at a time

template <template <KvType> typename Kernel>
auto kernel_for(KvType type) {
  return type == KvType::f16   ? Kernel<KvType::f16>::run
         : type == KvType::f32 ? Kernel<KvType::f32>::run
                               : Kernel<KvType::q8_0>::run;
}
template <KvType type>
struct Append {
  static constexpr auto run = append_latents<type>;
};
template <KvType type>
struct Attend {
  static constexpr auto run = attend_latents<type>;
};

// Rows whose caches store alike: the numbers of rows and of results [row0, row0 + n), [out0, out0 + n_out).
struct Run {
  KvPageLayout layout;
  int64_t row0, n, out0, n_out;
};

std::vector<Run> runs_of(const MlaArgs& args) {
  std::vector<Run> runs;
  for (const Step::Slice& slice : args.step->slices()) {
    const KvPageLayout& layout = slice.cache.layout;
    const bool alike = !runs.empty() && runs.back().layout.type == layout.type;
    if (!alike) runs.push_back({layout, slice.row0, 0, args.wanted_only ? slice.wanted0 : slice.row0, 0});
    runs.back().n += slice.n;
    runs.back().n_out += args.wanted_only ? slice.n_wanted : slice.n;
  }
  return runs;
}

}  // namespace

void CudaBackend::mla_attention(const MlaArgs& args) {
  const Lock lock(device_.lock());
  const Step& step = *args.step;
  const int64_t n = step.n_rows(), n_out = args.wanted_only ? step.n_wanted() : n, hidden = args.q.cols;
  const int64_t heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, nope = args.qk_nope_head_dim;
  const int64_t width = rank + rope, q_head = nope + rope, v_head = args.v_head_dim;
  using Source = LatentSource<KvType::f16>;
  KIMI_CHECK(rank <= Source::kValueWidth && width <= Source::kWidth, ErrorKind::unsupported, "device.latent",
             "the backend cuda knows latents of at most %d numbers and %d with the rotated key, the model has %lld and %lld: use "
             "the backend cpu",
             Source::kValueWidth, Source::kWidth, static_cast<long long>(rank), static_cast<long long>(width));
  upload_rows(step);
  upload_angles(args);

  Rows x{args.x, n, hidden, hidden, {}};
  quantize_for(args.q, &x, &q8_x_);
  quantize_for(args.kv_a, &x, &q8_x_);
  auto* ckv = scratch<float>(&ckv_, n * width);
  product_by_form(args.kv_a, x, dense(n, width), step.n_expanded(), ckv);
  const std::vector<Run> runs = runs_of(args);
  for (const Run& one : runs) {
    const CacheArgs cache{values_.pages,
                          values_.first_page,
                          values_.positions,
                          args.layer * one.layout.layer_bytes(),
                          static_cast<int>(one.layout.row_bytes),
                          static_cast<int>(rank),
                          static_cast<int>(rope)};
    run("append_latents", kernel_for<Append>(one.layout.type), dim3(static_cast<unsigned>(one.n)), 128, sizeof(AppendShared),
        AppendArgs{cache, static_cast<int>(one.row0), ckv, args.kv_a_norm, values_.cos_sin, args.kv_a_norm_eps});
  }
  if (n_out == 0) return;

  // Queries of the rows that are wanted, into the latent space: [n_out, heads, rank | rope].
  const int* rows = args.wanted_only ? values_.wanted : values_.all;
  auto* q = scratch<float>(&q_, n_out * heads * q_head);
  Placement wanted = dense(n_out, heads * q_head);
  wanted.map.x_rows = rows;
  const int64_t n_expanded = args.wanted_only ? step.n_wanted_expanded() : step.n_expanded();
  product_by_form(args.q, x, wanted, n_expanded, q);
  auto* latent_q = scratch<float>(&latent_q_, n_out * heads * width);
  Rows q_nope{q, n_out * heads, nope, q_head, {}};
  quantize_for(args.k_b, &q_nope, &q8_heads_);
  Placement by_head = dense(n_out, heads * width);
  by_head.map.x_step = static_cast<int>(heads);
  by_head.map.x_matrix = 1;
  by_head.map.out_matrix = width;
  product_by_form(args.k_b, q_nope, by_head, n_expanded, latent_q);
  run_each("rotate_queries", rotate_queries, n_out * heads * (rope / 2),
           RotateArgs{q, values_.cos_sin, rows, n_out, static_cast<int>(heads), static_cast<int>(nope), static_cast<int>(rope),
                      static_cast<int>(rank), latent_q});

  auto* context = scratch<float>(&context_, n_out * heads * rank);
  for (const Run& one : runs) attend_run(args, one.layout, one.out0, one.n_out, rows, latent_q, context);

  // Back out of the latent space.
  Rows contexts{context, n_out * heads, rank, rank, {}};
  quantize_for(args.v_b, &contexts, &q8_heads_);
  by_head.map.out_step = heads * v_head;
  by_head.map.out_matrix = v_head;
  auto* attended = scratch<float>(&attended_, n_out * heads * v_head);
  product_by_form(args.v_b, contexts, by_head, n_expanded, attended);
  LinearArgs o{};
  o.x = attended;
  o.n = n_out;
  o.w = args.o;
  o.add = true;
  o.out = args.out;
  o.n_expanded = n_expanded;
  linear(o);
}

// Results [out0, out0 + n_out), of rows that store alike, as many at a time as the scratch of their splits holds.
void CudaBackend::attend_run(const MlaArgs& args, const KvPageLayout& layout, int64_t out0, int64_t n_out, const int* rows,
                             const float* latent_q, float* context) {
  const int64_t heads = args.num_heads, rank = args.kv_lora_rank, width = rank + args.qk_rope_head_dim;
  const CacheArgs cache{values_.pages,
                        values_.first_page,
                        values_.positions,
                        args.layer * layout.layer_bytes(),
                        static_cast<int>(layout.row_bytes),
                        static_cast<int>(rank),
                        static_cast<int>(args.qk_rope_head_dim)};
  int max_splits = 1;
  for (const int32_t position : args.step->positions()) {
    const int size = split_keys_of(position + 1);
    max_splits = std::max(max_splits, (position + size) / size);
  }
  const int64_t per_row = max_splits * heads * rank, at_a_time = std::max<int64_t>(1, kStateFloats / per_row);
  for (int64_t first = out0; first < out0 + n_out; first += at_a_time) {
    const int64_t n = std::min(at_a_time, out0 + n_out - first);
    auto *splits = scratch<float>(&splits_, n * per_row), *states = scratch<float>(&states_, n * max_splits * heads * 2);
    run("attend_latents", kernel_for<Attend>(layout.type),
        dim3(static_cast<unsigned>(n), static_cast<unsigned>(max_splits),
             static_cast<unsigned>((heads + kQueries - 1) / kQueries)),
        kAttentionThreads, sizeof(AttentionShared<LatentSource<KvType::f16>::kWidth>),
        LatentArgs{cache, latent_q + first * heads * width, rows + first, static_cast<int>(heads), max_splits, args.scale, splits,
                   states});
    run("merge_splits", merge_splits, dim3(static_cast<unsigned>(n), static_cast<unsigned>(heads)), 128, 0,
        MergeArgsOfSplits{splits, states, rows + first, values_.positions, static_cast<int>(heads), static_cast<int>(rank),
                          max_splits, context + first * heads * rank});
  }
}

}  // namespace kimi::cuda
