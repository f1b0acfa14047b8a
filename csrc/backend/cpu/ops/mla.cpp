// Multi-head latent attention. Two forms of the same function:
//   absorbed  queries are taken into the latent space; one latent row is key and value of all heads
//   expanded  keys and values of every head are made from the latents, block by block
// Per pair of query and key the expanded form costs 3.4 times less, but expanding a cached row costs as much as about
// 170 absorbed queries: whole pages of a prompt are expanded, answers and what is left of a prompt are absorbed. The caller says
// which row is which.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ops/compute.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kMaxRopeDim = 1024;

}  // namespace

MlaCall::MlaCall(const MlaArgs& given)
    : args(given), n(given.step->n_rows()), n_out(given.wanted_only ? given.step->n_wanted() : n) {
  for (const Step::Slice& slice : args.step->slices())
    slices.push_back({slice.row0, slice.n, args.step->positions().data() + slice.row0, slice.form, slice.cache.layer(args.layer),
                      args.wanted_only ? slice.n_wanted : slice.n, args.wanted_only ? slice.wanted0 : slice.row0, slice.adapter});
}

void CpuBackend::mla_attention(const MlaArgs& args) {
  const MlaCall call(args);
  const int64_t n = call.n, n_out = call.n_out;
  KIMI_DCHECK(args.qk_rope_head_dim <= kMaxRopeDim);
  const int64_t q_dim = args.num_heads * (args.qk_nope_head_dim + args.qk_rope_head_dim);
  const int64_t width = args.kv_lora_rank + args.qk_rope_head_dim, v_dim = args.num_heads * args.v_head_dim;
  if (observer_) show({{&args.q, args.x, n, args.q.cols, nullptr}, {&args.kv_a, args.x, n, args.q.cols, nullptr}});
  Activations x{args.x, n, args.q.cols, args.q.cols, {}};
  if (uses_int8(args.q) || uses_int8(args.kv_a)) quantize(&x, &q8_x_);
  q_.resize(static_cast<size_t>(n_out * q_dim));
  ckv_.resize(static_cast<size_t>(n * width));
  attended_.resize(static_cast<size_t>(n_out * v_dim));
  std::vector<Product> products;
  int64_t end = -1, n_expanded = 0, n_out_expanded = 0;  // end: of the rows that the last product with q takes
  for (const AttentionSlice& slice : call.slices) {
    if (slice.form == RowForm::expanded) {
      KIMI_DCHECK(slice.row0 == n_expanded);
      n_expanded += slice.n;
      n_out_expanded += slice.n_out;
    }
    const int64_t row0 = slice.row0 + slice.n - slice.n_out;
    if (slice.n_out == 0) continue;
    if (row0 == end && (products.back().form == slice.form || uses_int8(args.q)))
      products.back().x.n += slice.n_out;  // one pass over the weights for neighbours
    else
      products.push_back({args.q, x.rows(row0, slice.n_out), q_.data() + slice.out0 * q_dim, q_dim, slice.form});
    end = row0 + slice.n_out;
  }
  add_product(&products, args.kv_a, x, n_expanded, ckv_.data(), width);
  multiply(products, args.k_b.data);
  if (const int32_t* adapters = args.step->adapters()) {
    std::vector<SideRow> sides;
    for (const AttentionSlice& slice : call.slices) {
      const int64_t row0 = slice.row0 + slice.n - slice.n_out;
      add_side_rows(args.q, x.rows(row0, slice.n_out).x, slice.n_out, adapters + row0, q_.data() + slice.out0 * q_dim, q_dim,
                    &sides);
    }
    add_side_rows(args.kv_a, x.x, n, adapters, ckv_.data(), width, &sides);
    add_sides(std::move(sides));
  }
  append_to_cache(call, q_.data(), ckv_.data());
  if (n_out == 0) return;
  std::vector<const AttentionSlice*> absorbed;
  for (const AttentionSlice& slice : call.slices) {
    if (slice.n_out == 0) continue;
    // The expanded form multiplies k_b and v_b with every latent, attended to or not: an observer must not count that.
    if (slice.form == RowForm::expanded && !observer_)
      attend_expanded(args, slice, q_.data() + slice.out0 * q_dim, attended_.data() + slice.out0 * v_dim);
    else
      absorbed.push_back(&slice);
  }
  if (!absorbed.empty()) {
    const int64_t out0 = absorbed.front()->out0;
    attend_absorbed(args, absorbed, q_.data() + out0 * q_dim, attended_.data() + out0 * v_dim);
  }
  LinearArgs o{};
  o.x = attended_.data();
  o.n = n_out;
  o.w = args.o;
  o.add = true;
  o.out = args.out;
  o.n_expanded = n_out_expanded;
  o.adapters = args.wanted_only ? args.step->wanted_adapters() : args.step->adapters();
  linear(o);
}

// Rotates queries in place and writes the new latent rows. Angles are computed in double: at position 100,000 a float
// angle would be off by 0.004.
void CpuBackend::append_to_cache(const MlaCall& call, float* q, const float* ckv) {
  const MlaArgs& args = call.args;
  const int64_t rank = args.kv_lora_rank, rope = args.qk_rope_head_dim, head = args.qk_nope_head_dim + rope, width = rank + rope;
  const auto& slices = call.slices;
  for_rows(call.n, args.num_heads * head, [&](int64_t row) {
    const auto after = std::upper_bound(slices.begin(), slices.end(), row,
                                        [](int64_t r, const AttentionSlice& slice) { return r < slice.row0; });
    const AttentionSlice& slice = *(after - 1);
    const int64_t i = row - slice.row0, position = slice.positions[i], out = i - (slice.n - slice.n_out);
    float cos_sin[kMaxRopeDim];
    for (int64_t j = 0; j < rope / 2; ++j) {
      const double angle = static_cast<double>(position) * args.rope_inv_freq[j];
      cos_sin[2 * j] = static_cast<float>(std::cos(angle)) * args.rope_mscale;
      cos_sin[2 * j + 1] = static_cast<float>(std::sin(angle)) * args.rope_mscale;
    }
    for (int64_t h = 0; out >= 0 && h < args.num_heads; ++h)
      kernels_.rotate_pairs(q + ((slice.out0 + out) * args.num_heads + h) * head + args.qk_nope_head_dim, cos_sin, rope / 2);
    std::vector<float> latent(static_cast<size_t>(width));
    kernels_.rms_norm(ckv + row * width, args.kv_a_norm, args.kv_a_norm_eps, rank, latent.data());
    std::memcpy(latent.data() + rank, ckv + row * width + rank, static_cast<size_t>(rope) * sizeof(float));
    kernels_.rotate_pairs(latent.data() + rank, cos_sin, rope / 2);
    store_latent(slice.cache, rank, rope, position, latent.data());
  });
}

void CpuBackend::store_latent(const KvLayer& cache, int64_t rank, int64_t rope, int64_t position, const float* latent) const {
  const KvRow row(cache.type, rank, rope);
  uint8_t* to = cache.row(position);
  if (cache.type == KvType::f32) {
    std::memcpy(to, latent, static_cast<size_t>(row.bytes));
  } else if (cache.type == KvType::f16) {
    kernels_.f16_from_f32_row(latent, rank + rope, reinterpret_cast<uint16_t*>(to));
  } else {
    const int64_t n = row.latent + row.rope;
    std::vector<float> padded(static_cast<size_t>(n)), scale(static_cast<size_t>(row.n_blocks));
    std::vector<Q8Block> blocks(static_cast<size_t>(row.n_blocks));
    std::copy_n(latent, rank, padded.data());
    std::copy_n(latent + rank, rope, padded.data() + row.latent);
    kernels_.quantize_row(padded.data(), n, blocks.data());
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint8_t>(blocks[static_cast<size_t>(i / 32)].q[i % 32] + 128);
    for (size_t b = 0; b < blocks.size(); ++b) scale[b] = blocks[b].scale;
    kernels_.f16_from_f32_row(scale.data(), row.n_blocks, reinterpret_cast<uint16_t*>(to + n));
  }
}

// Rows [first, first + n) of the cache, all of one page, as floats, [n, rank + rope]; `scratch` is used when they have to be
// converted.
const float* CpuBackend::latent_rows(const KvLayer& cache, int64_t rank, int64_t rope, int64_t first, int64_t n,
                                     float* scratch) const {
  const KvRow row(cache.type, rank, rope);
  const uint8_t* from = cache.row(first);
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

bool CpuBackend::attends_in_bf16(const MlaArgs& args, const KvLayer& cache) const {
  const bool takes =
      InBf16::takes(kernels_, args.kv_lora_rank) && InBf16::takes(kernels_, args.qk_nope_head_dim);  // rope is even
  return takes && cache.type != KvType::f32 && uses_int8(args.kv_a);
}

}  // namespace kimi::cpu
