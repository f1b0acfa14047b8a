// Full attention within one picture. Keys and values are laid out head by head, so that a block of them is contiguous.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ops/compute.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kTilesPerTask = 4;  // query tiles that share a block of keys while it is in the second-level cache

}  // namespace

void CpuBackend::vit_attention(const VitAttentionArgs& args) {
  const int64_t n = args.n, hidden = args.hidden, heads = args.num_heads, head_dim = hidden / heads;
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));

  // Projections [3, n, hidden], then rotated into [3, heads, n, head_dim].
  q_.resize(static_cast<size_t>(3 * n * hidden));
  heads_.resize(static_cast<size_t>(3 * n * hidden));
  const Matrix* weights[3] = {&args.q, &args.k, &args.v};
  const float* biases[3] = {args.q_bias, args.k_bias, args.v_bias};
  for (int i = 0; i < 3; ++i) {
    LinearArgs linear_args{};
    linear_args.x = args.x;
    linear_args.n = n;
    linear_args.w = *weights[i];
    linear_args.bias = biases[i];
    linear_args.compute_type = args.compute_type;
    linear_args.adapters = args.adapters;
    linear_args.out = q_.data() + i * n * hidden;
    linear(linear_args);
  }
  for_rows(n, 3 * hidden, [&](int64_t row) {
    for (int64_t i = 0; i < 3; ++i)
      for (int64_t h = 0; h < heads; ++h) {
        float* out = heads_.data() + ((i * heads + h) * n + row) * head_dim;
        std::memcpy(out, q_.data() + (i * n + row) * hidden + h * head_dim, static_cast<size_t>(head_dim) * sizeof(float));
        if (i < 2) kernels_.rotate_pairs(out, args.cos_sin + row * head_dim, head_dim / 2);
        if (i == 0)
          for (int64_t d = 0; d < head_dim; ++d) out[d] *= scale;
      }
  });

  attended_.resize(static_cast<size_t>(n * hidden));
  if (args.compute_type == ComputeType::bf16 && InBf16::takes(kernels_, head_dim))
    attend_picture_in(InBf16{kernels_}, n, heads, head_dim);
  else
    attend_picture_in(InFloat{kernels_}, n, heads, head_dim);

  LinearArgs o{};
  o.x = attended_.data();
  o.n = n;
  o.w = args.o;
  o.bias = args.o_bias;
  o.add = true;
  o.compute_type = args.compute_type;
  o.adapters = args.adapters;
  o.out = args.out;
  linear(o);
}

// heads_, [3, heads, n, head_dim], -> attended_, [n, heads * head_dim].
template <typename Form>
void CpuBackend::attend_picture_in(const Form& form, int64_t n, int64_t heads, int64_t head_dim) {
  using Number = typename Form::Number;
  constexpr bool kAsTheyAre = std::is_same_v<Number, float>;
  const int64_t hidden = heads * head_dim, lanes = kernels_.tile_lanes;
  const Number *keys, *values;
  const int64_t head_size = (n + 1) / 2 * 2 * head_dim;  // values lie in pairs of keys
  if constexpr (kAsTheyAre) {
    keys = heads_.data() + n * hidden;
    values = keys + n * hidden;
  } else {
    expanded_.resize(static_cast<size_t>(heads * head_size));
    auto* written = reinterpret_cast<Number*>(expanded_.data());
    keys = written;
    values = written + heads * head_size;
    const int64_t n_blocks = (n + kMaxAttentionKeys - 1) / kMaxAttentionKeys;
    pool_.parallel_for(heads * n_blocks, [&](int64_t task, int) {
      const int64_t h = task / n_blocks, row0 = task % n_blocks * kMaxAttentionKeys,
                    count = std::min(kMaxAttentionKeys, n - row0);
      const float* k = heads_.data() + n * hidden + (h * n + row0) * head_dim;
      Number* to = written + h * head_size + row0 * head_dim;
      form.row(k, count * head_dim, to);
      form.across(k + n * hidden, count, head_dim, 1.0f, to + heads * head_size);
    });
  }
  const int64_t head_step = kAsTheyAre ? n * head_dim : head_size;

  const int64_t group = kTilesPerTask * lanes, n_groups = (n + group - 1) / group;
  pool_.parallel_for(heads * n_groups, [&](int64_t task, int thread) {
    const int64_t h = task / n_groups, row0 = task % n_groups * group;
    const float* q = heads_.data() + h * n * head_dim;
    const int64_t tile_floats = (3 * head_dim + 2) * lanes;  // queries as floats and as numbers, output, maximum, sum
    AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
    scratch.resize(static_cast<size_t>(kTilesPerTask * tile_floats + kMaxAttentionKeys * lanes));
    const int64_t n_tiles = std::min(kTilesPerTask, (n - row0 + lanes - 1) / lanes);
    typename Form::Block blocks[kTilesPerTask] = {};
    for (int64_t t = 0; t < n_tiles; ++t) {
      float* q_t = scratch.data() + t * tile_floats;
      typename Form::Block& block = blocks[t];
      block.lanes = lanes;
      block.o_t = q_t + head_dim * lanes;
      block.m = block.o_t + head_dim * lanes;
      block.l = block.m + lanes;
      block.scores = scratch.data() + kTilesPerTask * tile_floats;
      block.dk1 = block.dv = block.ldk1 = block.ldv = head_dim;
      kernels_.transpose_panel(q + (row0 + t * lanes) * head_dim, head_dim, std::min(lanes, n - row0 - t * lanes), head_dim, q_t);
      if constexpr (kAsTheyAre) {
        block.q_t = q_t;
      } else {
        auto* written = reinterpret_cast<Number*>(block.l + lanes);
        form.across(q_t, head_dim, lanes, 1.0f, written);
        block.q_t = written;
      }
      std::fill_n(block.o_t, head_dim * lanes, 0.0f);
      std::fill_n(block.m, lanes, -INFINITY);
      std::fill_n(block.l, lanes, 0.0f);
    }
    for (int64_t key = 0; key < n; key += kMaxAttentionKeys) {
      for (int64_t t = 0; t < n_tiles; ++t) {
        blocks[t].key0 = key;
        blocks[t].n_keys = std::min(kMaxAttentionKeys, n - key);
        blocks[t].k1 = keys + h * head_step + key * head_dim;
        blocks[t].v = values + h * head_step + key * head_dim;
        form.attend(blocks[t]);
      }
    }
    for (int64_t t = 0; t < n_tiles; ++t)
      for (int64_t lane = 0; lane < std::min(lanes, n - row0 - t * lanes); ++lane) {
        const float inverse = 1.0f / blocks[t].l[lane];
        float* out = attended_.data() + (row0 + t * lanes + lane) * hidden + h * head_dim;
        for (int64_t d = 0; d < head_dim; ++d) out[d] = blocks[t].o_t[d * lanes + lane] * inverse;
      }
  });
}

}  // namespace kimi::cpu
