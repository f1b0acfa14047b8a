// The expanded form of latent attention: keys and values of every head are made from the latents, a block at a time.
#include <algorithm>
#include <cstring>

#include "backend/cpu/cpu_backend.h"
#include "backend/cpu/ops/compute.h"
#include "backend/cpu/ops/online_softmax.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kExpandedKeys = 512;  // keys that are expanded at a time

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace

void CpuBackend::attend_expanded(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended) {
  if (attends_in_bf16(args, slice.cache))
    attend_expanded_in(InBf16{kernels_}, args, slice, q, attended);
  else
    attend_expanded_in(InFloat{kernels_}, args, slice, q, attended);
}

template <typename Form>
void CpuBackend::attend_expanded_in(const Form& form, const MlaArgs& args, const AttentionSlice& slice, const float* q,
                                    float* attended) {
  using Number = typename Form::Number;
  const int64_t n = slice.n_out, heads = args.num_heads, rank = args.kv_lora_rank, rope = args.qk_rope_head_dim,
                nope = args.qk_nope_head_dim;
  const int64_t width = rank + rope, q_head = nope + rope, v_head = args.v_head_dim, lanes = kernels_.tile_lanes;
  const int32_t* positions = slice.positions + (slice.n - n);  // of the queries
  const int64_t total = positions[n - 1] + 1;
  const int64_t nope_pad = round_up(nope, lanes), v_pad = round_up(v_head, lanes), n_tiles = ceil_div(n, lanes);
  const auto scratch_of = [&](int thread, int64_t n_floats) {
    AlignedBuffer<float>& scratch = scratch_[static_cast<size_t>(thread)].attention;
    scratch.resize(static_cast<size_t>(n_floats));
    return scratch.data();
  };
  const auto numbers = [](AlignedBuffer<float>* buffer, int64_t count) {
    buffer->resize(static_cast<size_t>(count));
    return reinterpret_cast<Number*>(buffer->data());
  };

  // Weights of all heads: k_b as stored, [heads, rank, nope_pad]; v_b in panels, [heads, v_pad / lanes, rank, lanes].
  const int64_t k_size = rank * nope_pad, v_size = rank * v_pad;
  Number *k_weights = numbers(&packed_, heads * (k_size + v_size)), *v_weights = k_weights + heads * k_size;
  pool_.parallel_for(2 * heads, [&](int64_t task, int thread) {
    const int64_t h = task / 2;
    float* decoded = scratch_of(thread, std::max(k_size, rank * lanes));
    if (task % 2 == 0) {
      const Matrix k_b = args.k_b.at(h);
      for (int64_t c = 0; c < rank; ++c) {
        float* row = decoded + c * nope_pad;
        kernels_.decode_row[static_cast<int>(k_b.type)](k_b.data + c * k_b.row_bytes, row, nope);
        std::fill(row + nope, row + nope_pad, 0.0f);
      }
      form.across(decoded, rank, nope_pad, 1.0f, k_weights + h * k_size);
    } else {
      for (int64_t v0 = 0; v0 < v_head; v0 += lanes) {
        pack_float(args.v_b.at(h), v0, lanes, &scratch_[static_cast<size_t>(thread)], decoded);
        form.across(decoded, rank, lanes, 1.0f, v_weights + h * v_size + v0 * rank);
      }
    }
  });

  // Queries of (head, tile) side by side, scaled, and their states.
  const int64_t state_size = AttentionState::size(lanes, v_head);
  Number* queries = numbers(&heads_, heads * n_tiles * q_head * lanes);
  states_.resize(static_cast<size_t>(heads * n_tiles * state_size));
  pool_.parallel_for(heads * n_tiles, [&](int64_t task, int thread) {
    const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
    float* q_t = scratch_of(thread, q_head * lanes);
    kernels_.transpose_panel(q + (t0 * heads + h) * q_head, heads * q_head, std::min(lanes, n - t0), q_head, q_t);
    form.across(q_t, q_head, lanes, args.scale, queries + task * q_head * lanes);
    AttentionState(states_.data() + task * state_size, lanes).clear(lanes, v_head);
  });

  Number *latent = numbers(&latent_, kExpandedKeys * width),
         *keys = numbers(&expanded_, heads * kExpandedKeys * (nope_pad + v_pad));
  Number* values = keys + heads * kExpandedKeys * nope_pad;
  for (int64_t first = 0; first < total; first += kExpandedKeys) {
    const int64_t n_keys = std::min(kExpandedKeys, total - first), blocks = ceil_div(n_keys, kMaxAttentionKeys);
    pool_.parallel_for(blocks, [&](int64_t task, int thread) {
      const int64_t key0 = task * kMaxAttentionKeys, count = std::min(kMaxAttentionKeys, n_keys - key0);
      const float* rows = latent_rows(slice.cache, rank, rope, first + key0, count, scratch_of(thread, count * width));
      form.row(rows, count * width, latent + key0 * width);
    });
    pool_.parallel_for(heads * blocks, [&](int64_t task, int) {
      const int64_t h = task / blocks, key0 = task % blocks * kMaxAttentionKeys,
                    count = std::min(kMaxAttentionKeys, n_keys - key0);
      const Number* rows = latent + key0 * width;
      for (int64_t d = 0; d < nope_pad; d += lanes)
        form.keys(rows, width, k_weights + h * k_size + d * Form::kAcross, nope_pad, rank, count,
                  keys + (h * kExpandedKeys + key0) * nope_pad + d, nope_pad);
      for (int64_t d = 0; d < v_pad; d += lanes)
        form.values(rows, width, v_weights + h * v_size + d * rank, lanes, rank, count,
                    values + (h * kExpandedKeys + key0) * v_pad + d * Form::kAcross, v_pad);
    });
    pool_.parallel_for(heads * n_tiles, [&](int64_t task, int thread) {
      const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
      int32_t last_key[64];
      for (int64_t lane = 0; lane < lanes; ++lane) last_key[lane] = positions[std::min(t0 + lane, n - 1)];
      const AttentionState state(states_.data() + task * state_size, lanes);
      typename Form::Block block{};
      block.lanes = lanes;
      block.q_t = queries + task * q_head * lanes;
      block.dk1 = nope;
      block.ldk1 = nope_pad;
      block.dk2 = rope;
      block.ldk2 = width;
      block.dv = v_head;
      block.ldv = v_pad;
      block.scores = scratch_of(thread, kMaxAttentionKeys * lanes);
      const int64_t end = std::min<int64_t>(first + n_keys, last_key[lanes - 1] + 1);
      for_key_blocks(&block, state, first, end, last_key, [&](int64_t key) {
        block.k1 = keys + (h * kExpandedKeys + key - first) * nope_pad;
        block.k2 = latent + (key - first) * width + rank;
        block.v = values + (h * kExpandedKeys + key - first) * v_pad;
        form.attend(block);
      });
    });
  }
  pool_.parallel_for(heads * n_tiles, [&](int64_t task, int) {
    const int64_t h = task / n_tiles, t0 = task % n_tiles * lanes;
    const AttentionState state(states_.data() + task * state_size, lanes);
    for (int64_t lane = 0; lane < std::min(lanes, n - t0); ++lane) {
      const float inverse = 1.0f / state.l[lane];
      float* out = attended + ((t0 + lane) * heads + h) * v_head;
      for (int64_t d = 0; d < v_head; ++d) out[d] = state.o[d * lanes + lane] * inverse;
    }
  });
}

}  // namespace kimi::cpu
