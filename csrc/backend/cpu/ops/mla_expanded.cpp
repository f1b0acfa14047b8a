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

// The attention of one slice. Everything that is made on the way lies in the backend's buffers.
template <typename Form>
class CpuBackend::ExpandedAttention {
 public:
  ExpandedAttention(CpuBackend& cpu, const MlaArgs& args, const AttentionSlice& slice)
      : cpu_(cpu),
        form_{cpu.kernels_},
        args_(args),
        slice_(slice),
        n_(slice.n_out),
        positions_(slice.positions + (slice.n - n_)),
        lanes_(cpu.kernels_.tile_lanes),
        nope_pad_(round_up(nope_, lanes_)),
        v_pad_(round_up(v_head_, lanes_)),
        n_tiles_(ceil_div(n_, lanes_)) {}

  void run(const float* q, float* attended) {
    lay_out_weights();
    lay_out_queries(q);
    latent_ = numbers(&cpu_.latent_, kExpandedKeys * width_);
    keys_ = numbers(&cpu_.expanded_, heads_ * kExpandedKeys * (nope_pad_ + v_pad_));
    values_ = keys_ + heads_ * kExpandedKeys * nope_pad_;
    const int64_t total = positions_[n_ - 1] + 1;
    for (int64_t first = 0; first < total; first += kExpandedKeys) {
      const int64_t n_keys = std::min(kExpandedKeys, total - first);
      expand(first, n_keys);
      attend(first, n_keys);
    }
    write(attended);
  }

 private:
  using Number = typename Form::Number;
  float* scratch_of(int thread, int64_t n_floats) const {
    AlignedBuffer<float>& scratch = cpu_.scratch_[static_cast<size_t>(thread)].attention;
    scratch.resize(static_cast<size_t>(n_floats));
    return scratch.data();
  }
  static Number* numbers(AlignedBuffer<float>* buffer, int64_t count) {
    buffer->resize(static_cast<size_t>(count));
    return reinterpret_cast<Number*>(buffer->data());
  }

  // Weights of all heads with what the slice's adapter adds to them, since they are unpacked to floats anyway: k_b as stored,
  // [heads, rank, nope_pad]; v_b in panels, [heads, v_pad / lanes, rank, lanes].
  void lay_out_weights() {
    k_weights_ = numbers(&cpu_.packed_, heads_ * (k_size() + v_size()));
    v_weights_ = k_weights_ + heads_ * k_size();
    cpu_.pool_.parallel_for(2 * heads_, [&](int64_t task, int thread) {
      const int64_t h = task / 2;
      float* decoded = scratch_of(thread, std::max(k_size(), rank_ * lanes_));
      if (task % 2 == 0) {
        const Matrix k_b = args_.k_b.at(h);
        for (int64_t c = 0; c < rank_; ++c) {
          float* row = decoded + c * nope_pad_;
          cpu_.kernels_.decode_row[static_cast<int>(k_b.type)](k_b.data + c * k_b.row_bytes, row, nope_);
          if (const LowRank* side = k_b.side(slice_.adapter))
            for (int64_t k = 0; k < side->rank; ++k)
              cpu_.kernels_.add_scaled(side->a + k * nope_, side->b[k * rank_ + c], nope_, row);
          std::fill(row + nope_, row + nope_pad_, 0.0f);
        }
        form_.across(decoded, rank_, nope_pad_, 1.0f, k_weights_ + h * k_size());
      } else {
        for (int64_t v0 = 0; v0 < v_head_; v0 += lanes_) {
          const Matrix v_b = args_.v_b.at(h);
          cpu_.pack_float(v_b, v0, lanes_, &cpu_.scratch_[static_cast<size_t>(thread)], decoded);
          if (const LowRank* side = v_b.side(slice_.adapter))
            for (int64_t c = 0; c < rank_; ++c)
              for (int64_t k = 0; k < side->rank; ++k)
                cpu_.kernels_.add_scaled(side->b + k * v_head_ + v0, side->a[k * rank_ + c], std::min(lanes_, v_head_ - v0),
                                         decoded + c * lanes_);
          form_.across(decoded, rank_, lanes_, 1.0f, v_weights_ + h * v_size() + v0 * rank_);
        }
      }
    });
  }

  // Queries of (head, tile) side by side, scaled, and their states.
  void lay_out_queries(const float* q) {
    queries_ = numbers(&cpu_.heads_, heads_ * n_tiles_ * q_head_ * lanes_);
    cpu_.states_.resize(static_cast<size_t>(heads_ * n_tiles_ * state_size()));
    cpu_.pool_.parallel_for(heads_ * n_tiles_, [&](int64_t task, int thread) {
      const int64_t h = task / n_tiles_, t0 = task % n_tiles_ * lanes_;
      float* q_t = scratch_of(thread, q_head_ * lanes_);
      cpu_.kernels_.transpose_panel(q + (t0 * heads_ + h) * q_head_, heads_ * q_head_, std::min(lanes_, n_ - t0), q_head_, q_t);
      form_.across(q_t, q_head_, lanes_, args_.scale, queries_ + task * q_head_ * lanes_);
      state(task).clear(lanes_, v_head_);
    });
  }

  // Keys and values of all heads at positions [first, first + n_keys).
  void expand(int64_t first, int64_t n_keys) {
    const int64_t blocks = ceil_div(n_keys, kMaxAttentionKeys);
    cpu_.pool_.parallel_for(blocks, [&](int64_t task, int thread) {
      const int64_t key0 = task * kMaxAttentionKeys, count = std::min(kMaxAttentionKeys, n_keys - key0);
      const float* rows = cpu_.latent_rows(slice_.cache, rank_, rope_, first + key0, count, scratch_of(thread, count * width_));
      form_.row(rows, count * width_, latent_ + key0 * width_);
    });
    cpu_.pool_.parallel_for(heads_ * blocks, [&](int64_t task, int) {
      const int64_t h = task / blocks, key0 = task % blocks * kMaxAttentionKeys,
                    count = std::min(kMaxAttentionKeys, n_keys - key0);
      const Number* rows = latent_ + key0 * width_;
      for (int64_t d = 0; d < nope_pad_; d += lanes_)
        form_.keys(rows, width_, k_weights_ + h * k_size() + d * Form::kAcross, nope_pad_, rank_, count,
                   keys_ + (h * kExpandedKeys + key0) * nope_pad_ + d, nope_pad_);
      for (int64_t d = 0; d < v_pad_; d += lanes_)
        form_.values(rows, width_, v_weights_ + h * v_size() + d * rank_, lanes_, rank_, count,
                     values_ + (h * kExpandedKeys + key0) * v_pad_ + d * Form::kAcross, v_pad_);
    });
  }

  // Every query over the expanded keys that it sees.
  void attend(int64_t first, int64_t n_keys) {
    cpu_.pool_.parallel_for(heads_ * n_tiles_, [&](int64_t task, int thread) {
      const int64_t h = task / n_tiles_, t0 = task % n_tiles_ * lanes_;
      int32_t last_key[64];
      for (int64_t lane = 0; lane < lanes_; ++lane) last_key[lane] = positions_[std::min(t0 + lane, n_ - 1)];
      typename Form::Block block{};
      block.lanes = lanes_;
      block.q_t = queries_ + task * q_head_ * lanes_;
      block.dk1 = nope_;
      block.ldk1 = nope_pad_;
      block.dk2 = rope_;
      block.ldk2 = width_;
      block.dv = v_head_;
      block.ldv = v_pad_;
      block.scores = scratch_of(thread, kMaxAttentionKeys * lanes_);
      const int64_t end = std::min<int64_t>(first + n_keys, last_key[lanes_ - 1] + 1);
      for_key_blocks(&block, state(task), first, end, last_key, [&](int64_t key) {
        block.k1 = keys_ + (h * kExpandedKeys + key - first) * nope_pad_;
        block.k2 = latent_ + (key - first) * width_ + rank_;
        block.v = values_ + (h * kExpandedKeys + key - first) * v_pad_;
        form_.attend(block);
      });
    });
  }

  void write(float* attended) {
    cpu_.pool_.parallel_for(heads_ * n_tiles_, [&](int64_t task, int) {
      const int64_t h = task / n_tiles_, t0 = task % n_tiles_ * lanes_;
      const AttentionState of_tile = state(task);
      for (int64_t lane = 0; lane < std::min(lanes_, n_ - t0); ++lane) {
        const float inverse = 1.0f / of_tile.l[lane];
        float* out = attended + ((t0 + lane) * heads_ + h) * v_head_;
        for (int64_t d = 0; d < v_head_; ++d) out[d] = of_tile.o[d * lanes_ + lane] * inverse;
      }
    });
  }

  int64_t k_size() const { return rank_ * nope_pad_; }
  int64_t v_size() const { return rank_ * v_pad_; }
  int64_t state_size() const { return AttentionState::size(lanes_, v_head_); }
  AttentionState state(int64_t task) const { return {cpu_.states_.data() + task * state_size(), lanes_}; }

  CpuBackend& cpu_;
  const Form form_;
  const MlaArgs& args_;
  const AttentionSlice& slice_;
  const int64_t n_;                 // queries
  const int32_t* const positions_;  // of the queries
  const int64_t heads_ = args_.num_heads, rank_ = args_.kv_lora_rank, rope_ = args_.qk_rope_head_dim,
                nope_ = args_.qk_nope_head_dim, v_head_ = args_.v_head_dim;
  const int64_t width_ = rank_ + rope_, q_head_ = nope_ + rope_;
  const int64_t lanes_, nope_pad_, v_pad_, n_tiles_;
  Number *k_weights_ = nullptr, *v_weights_ = nullptr, *queries_ = nullptr;
  Number *latent_ = nullptr, *keys_ = nullptr, *values_ = nullptr;  // of the keys under way
};

void CpuBackend::attend_expanded(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended) {
  if (attends_in_bf16(args, slice.cache))
    ExpandedAttention<InBf16>(*this, args, slice).run(q, attended);
  else
    ExpandedAttention<InFloat>(*this, args, slice).run(q, attended);
}

}  // namespace kimi::cpu
