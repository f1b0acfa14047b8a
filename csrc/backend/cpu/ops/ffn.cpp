// SwiGLU networks: dense, shared and routed are one thing here, a list of experts with the tokens that visit each.
// Tokens always add their experts up in the same order: shared first, then routed ones by index.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "backend/cpu/cpu_backend.h"

namespace kimi::cpu {
namespace {

constexpr int64_t kTokenBlock = 128;
constexpr int64_t kFewRows = 16;  // up to which most experts have so few tokens that their weights are best streamed

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

void CpuBackend::ffn(const FfnArgs& args) {
  std::vector<ExpertWork> experts(1);
  experts[0].w = args.w;
  experts[0].tokens.resize(static_cast<size_t>(args.n));
  std::iota(experts[0].tokens.begin(), experts[0].tokens.end(), 0);
  experts[0].weights.assign(static_cast<size_t>(args.n), 1.0f);
  run_experts(args.x, args.n, std::min(args.n_expanded, args.n), args.adapters, experts, args.out);
}

// Router logits in float whatever the pass; the bias takes part in the choice only.
void CpuBackend::route(const MoeArgs& args, std::vector<ExpertWork>* experts) {
  const int64_t n_experts = args.router.rows, hidden = args.router.cols, k = args.num_experts_per_tok;
  std::vector<float> logits(static_cast<size_t>(args.n * n_experts));
  const int64_t cuts = args.n == 1 ? std::min<int64_t>(n_experts, 4) : 1, experts_per_cut = ceil_div(n_experts, cuts);
  pool_.parallel_for(args.n * cuts, [&](int64_t chunk, int) {
    const int64_t token = chunk / cuts, first = chunk % cuts * experts_per_cut,
                  count = std::min(experts_per_cut, n_experts - first);
    if (count > 0)
      kernels_.gemv_float[static_cast<int>(args.router.type)](args.router.data + first * args.router.row_bytes,
                                                              args.router.row_bytes, count, args.x + token * hidden, hidden,
                                                              hidden, 1, logits.data() + token * n_experts + first, n_experts);
  });
  std::vector<float> scores(static_cast<size_t>(n_experts)), choice(static_cast<size_t>(n_experts));
  std::vector<int32_t> order(static_cast<size_t>(n_experts));
  for (int64_t token = 0; token < args.n; ++token) {
    const float* row = logits.data() + token * n_experts;
    if (args.sigmoid) {
      for (int64_t e = 0; e < n_experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-row[e]));
    } else {
      const float top = *std::max_element(row, row + n_experts);
      float total = 0;
      for (int64_t e = 0; e < n_experts; ++e) total += scores[e] = std::exp(row[e] - top);
      for (int64_t e = 0; e < n_experts; ++e) scores[e] /= total;
    }
    for (int64_t e = 0; e < n_experts; ++e) {
      const float biased = scores[e] + (args.selection_bias ? args.selection_bias[e] : 0.0f);
      choice[e] = biased == biased ? biased : -INFINITY;  // NaN compares with nothing; a sort must not see it
    }
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + k, order.end(),
                      [&](int32_t a, int32_t b) { return choice[a] != choice[b] ? choice[a] > choice[b] : a < b; });
    float total = 0;
    for (int64_t i = 0; i < k; ++i) total += scores[order[i]];
    const float factor = args.routed_scaling_factor / (args.norm_topk_prob ? total + 1e-20f : 1.0f);
    for (int64_t i = 0; i < k; ++i) {
      ExpertWork& expert = (*experts)[static_cast<size_t>(order[i])];
      expert.tokens.push_back(static_cast<int32_t>(token));
      expert.weights.push_back(scores[order[i]] * factor);
    }
  }
}

void CpuBackend::moe_ffn(const MoeArgs& args) {
  const int64_t n_experts = args.router.rows;
  std::vector<ExpertWork> routed(static_cast<size_t>(n_experts));
  route(args, &routed);
  std::vector<ExpertWork> experts;
  experts.reserve(static_cast<size_t>(n_experts) + 1);
  if (args.shared.down) {
    ExpertWork& shared = experts.emplace_back();
    shared.w = args.shared;
    shared.tokens.resize(static_cast<size_t>(args.n));
    std::iota(shared.tokens.begin(), shared.tokens.end(), 0);
    shared.weights.assign(static_cast<size_t>(args.n), 1.0f);
  }
  for (int64_t e = 0; e < n_experts; ++e) {
    ExpertWork& expert = routed[static_cast<size_t>(e)];
    if (expert.tokens.empty()) continue;
    expert.w = {args.routed.gate.at(e), args.routed.up.at(e), args.routed.down.at(e)};
    experts.push_back(std::move(expert));
  }
  run_experts(args.x, args.n, std::min(args.n_expanded, args.n), args.adapters, experts, args.out);
}

// Where all weights are multiplied as bytes, rows of both forms share a pass over them.
void CpuBackend::run_experts(const float* x, int64_t n, int64_t n_expanded, const int32_t* adapters,
                             std::vector<ExpertWork>& experts, float* out) {
  const bool bytes = std::all_of(experts.begin(), experts.end(), [this](const ExpertWork& e) {
    return uses_int8(e.w.gate) && uses_int8(e.w.up) && uses_int8(e.w.down);
  });
  if (bytes || n_expanded == 0 || n_expanded == n) {
    const bool few = bytes ? n <= kFewRows : n_expanded == 0;
    run_experts_as(few ? RowForm::absorbed : RowForm::expanded, x, n, adapters, experts, out);
    return;
  }
  const int64_t hidden = experts[0].w.gate.cols;
  std::vector<ExpertWork> absorbed;
  for (ExpertWork& expert : experts) {
    const auto cut = std::lower_bound(expert.tokens.begin(), expert.tokens.end(), n_expanded);
    const auto n_first = cut - expert.tokens.begin();
    if (cut == expert.tokens.end()) continue;
    ExpertWork& later = absorbed.emplace_back();
    later.w = expert.w;
    for (auto token = cut; token != expert.tokens.end(); ++token)
      later.tokens.push_back(*token - static_cast<int32_t>(n_expanded));
    later.weights.assign(expert.weights.begin() + n_first, expert.weights.end());
    expert.tokens.erase(cut, expert.tokens.end());
    expert.weights.resize(static_cast<size_t>(n_first));
  }
  experts.erase(std::remove_if(experts.begin(), experts.end(), [](const ExpertWork& e) { return e.tokens.empty(); }),
                experts.end());
  run_experts_as(RowForm::expanded, x, n_expanded, adapters, experts, out);
  run_experts_as(RowForm::absorbed, x + n_expanded * hidden, n - n_expanded, adapters ? adapters + n_expanded : nullptr, absorbed,
                 out + n_expanded * hidden);
}

// Gate and up of the tokens whose adapters change them.
void CpuBackend::begin_sides(const float* x, const int32_t* adapters, std::vector<ExpertWork>& experts) {
  std::vector<SideRow> rows;
  const auto sides_of = [&](const ExpertWork& expert, const Matrix& w) {
    std::vector<SideRow> sides;
    if (!w.sides) return sides;
    for (const int32_t token : expert.tokens) {
      sides.push_back({w.side(adapters[token]), x + token * w.cols, nullptr});
      if (sides.back().side) rows.push_back(sides.back());
    }
    return sides;
  };
  for (ExpertWork& expert : experts) {
    expert.gate_sides = sides_of(expert, expert.w.gate);
    expert.up_sides = sides_of(expert, expert.w.up);
  }
  take_inner(&rows);
  auto row = rows.begin();
  for (ExpertWork& expert : experts)
    for (std::vector<SideRow>* sides : {&expert.gate_sides, &expert.up_sides})
      for (SideRow& side : *sides)
        if (side.side) side.inner = (row++)->inner;
}

// A token's experts add theirs in the same order as the products, after all of them.
void CpuBackend::add_down_sides(const int32_t* adapters, const std::vector<ExpertWork>& experts, float* out) {
  std::vector<SideRow> rows;
  for (const ExpertWork& expert : experts) {
    for (size_t j = 0; expert.w.down.sides && j < expert.tokens.size(); ++j) {
      const int32_t token = expert.tokens[j];
      if (const LowRank* side = expert.w.down.side(adapters[token]))
        rows.push_back(
            {side, expert.inner.x + static_cast<int64_t>(j) * expert.inner.k, out + token * side->rows, expert.weights[j]});
    }
  }
  add_sides(std::move(rows));
}

void CpuBackend::run_experts_as(RowForm form, const float* x, int64_t n, const int32_t* adapters,
                                std::vector<ExpertWork>& experts, float* out) {
  const int64_t hidden = experts[0].w.gate.cols;
  Activations input{x, n, hidden, hidden, {}};
  if (observer_) {
    std::vector<ProductInput> seen;
    for (const ExpertWork& e : experts)
      for (const Matrix* w : {&e.w.gate, &e.w.up})
        seen.push_back({w, x, static_cast<int64_t>(e.tokens.size()), hidden, e.tokens.data()});
    show(seen);
  }
  const bool any_q8 = std::any_of(experts.begin(), experts.end(),
                                  [this](const ExpertWork& e) { return uses_int8(e.w.gate) || uses_int8(e.w.up); });
  if (any_q8) quantize(&input, &q8_x_);
  if (adapters) begin_sides(x, adapters, experts);
  if (form == RowForm::absorbed)
    run_experts_few(input, experts, out);
  else
    run_experts_many(input, experts, out);
  if (adapters) add_down_sides(adapters, experts, out);
}

// Where the inner activations of each expert lie, [tokens, inner] one after the other: floats unless tiles quantize them, and
// int8 where its down projection wants that. Returns the number of floats.
int64_t CpuBackend::lay_out_inner(std::vector<ExpertWork>& experts) {
  int64_t n_floats = 0, n_blocks = 0;
  for (const ExpertWork& e : experts) {
    const int64_t n = static_cast<int64_t>(e.tokens.size()) * e.w.gate.rows;
    n_floats += e.quantizes_tiles ? 0 : n;
    n_blocks += uses_int8(e.w.down) ? n / 32 : 0;
  }
  inner_.resize(static_cast<size_t>(n_floats));
  q8_inner_.resize(static_cast<size_t>(n_blocks));
  Q8Block* blocks = q8_inner_.data();
  int64_t offset = 0;
  for (ExpertWork& e : experts) {
    const int64_t k = e.w.gate.rows, n = static_cast<int64_t>(e.tokens.size());
    e.offset = offset;
    e.inner = {e.quantizes_tiles ? nullptr : inner_.data() + offset, n, k, k, {}};
    offset += e.quantizes_tiles ? 0 : n * k;
    if (!uses_int8(e.w.down)) continue;
    e.inner.q8 = {blocks, k};
    blocks += n * k / 32;
  }
  return n_floats;
}

// What no tile has quantized yet.
void CpuBackend::quantize_inner(const std::vector<ExpertWork>& experts) {
  if (observer_) {
    std::vector<ProductInput> seen;
    for (const ExpertWork& e : experts) seen.push_back({&e.w.down, e.inner.x, e.inner.n, e.inner.k, nullptr});
    show(seen);
  }
  std::vector<Activations> rows;
  for (const ExpertWork& e : experts)
    for (int64_t j = 0; j < e.inner.n && e.inner.q8.blocks && !e.quantizes_tiles; ++j) rows.push_back(e.inner.rows(j, 1));
  for_rows(static_cast<int64_t>(rows.size()), rows.empty() ? 1 : rows[0].k, [&](int64_t i) {
    const Activations& row = rows[static_cast<size_t>(i)];
    kernels_.quantize_row(row.x, row.k, row.q8.blocks);
  });
}

// Every expert passes over its weights once: the rows of its tokens are brought together first, unless they lie together.
void CpuBackend::run_experts_few(Activations x, std::vector<ExpertWork>& experts, float* out) {
  const int64_t hidden = x.k, inner_floats = lay_out_inner(experts);
  gate_.resize(static_cast<size_t>(inner_floats));
  const auto gathers = [&](const ExpertWork& expert) { return expert.inner.n != x.n && expert.inner.n > 1; };
  const bool in_floats = std::any_of(experts.begin(), experts.end(),
                                     [this](const ExpertWork& e) { return !uses_int8(e.w.gate) || !uses_int8(e.w.up); });
  int64_t n_slots = 0, n_gathered = 0;
  for (const ExpertWork& expert : experts) {
    n_slots += expert.inner.n;
    n_gathered += gathers(expert) ? expert.inner.n : 0;
  }
  gathered_.resize(static_cast<size_t>(n_gathered * hidden));
  q8_gathered_.resize(static_cast<size_t>(x.q8.blocks ? n_gathered * hidden / 32 : 0));
  const Activations gathered{gathered_.data(), n_gathered, hidden, hidden, {x.q8.blocks ? q8_gathered_.data() : nullptr, hidden}};
  std::vector<Product> products;
  int64_t first = 0;  // of the gathered rows
  for (const ExpertWork& expert : experts) {
    const int64_t inner = expert.inner.k, n = expert.inner.n;
    Activations input = n == x.n ? x : x.rows(expert.tokens[0], 1);
    if (gathers(expert)) {
      input = gathered.rows(first, n);
      for (int64_t j = 0; j < n; ++j) {
        const Activations row = x.rows(expert.tokens[static_cast<size_t>(j)], 1);
        if (in_floats) std::copy_n(row.x, hidden, gathered_.data() + (first + j) * hidden);
        if (row.q8.blocks) std::copy_n(row.q8.blocks, hidden / 32, input.q8.blocks + j * (hidden / 32));
      }
      first += n;
    }
    products.push_back({expert.w.gate, input, gate_.data() + expert.offset, inner, RowForm::absorbed});
    products.push_back({expert.w.up, input, inner_.data() + expert.offset, inner, RowForm::absorbed});
  }
  multiply(products, experts[0].w.down.data);
  for (const ExpertWork& expert : experts) {
    for_rows(expert.gate_sides.empty() && expert.up_sides.empty() ? 0 : expert.inner.n, expert.inner.k * 16, [&](int64_t j) {
      const int64_t at = expert.offset + j * expert.inner.k;
      if (const SideRow* side = expert.side(expert.gate_sides, j)) add_outer(*side, 0, expert.inner.k, gate_.data() + at);
      if (const SideRow* side = expert.side(expert.up_sides, j)) add_outer(*side, 0, expert.inner.k, inner_.data() + at);
    });
  }
  for_rows(ceil_div(inner_floats, 1024), 16 * 1024, [&](int64_t block) {
    const int64_t first = block * 1024, count = std::min<int64_t>(1024, inner_floats - first);
    kernels_.silu_mul(gate_.data() + first, inner_.data() + first, count, inner_.data() + first);
  });

  // Down: one row of results per (expert, token), then each token adds its own up in expert order.
  quantize_inner(experts);
  products_.resize(static_cast<size_t>(n_slots * hidden));
  products.clear();
  int64_t row = 0;
  for (const ExpertWork& expert : experts) {
    products.push_back({expert.w.down, expert.inner, products_.data() + row * hidden, hidden, RowForm::absorbed});
    row += expert.inner.n;
  }
  multiply(products);
  row = 0;
  for (const ExpertWork& expert : experts)
    for (size_t j = 0; j < expert.tokens.size(); ++j)
      kernels_.add_scaled(products_.data() + row++ * hidden, expert.weights[j], hidden, out + expert.tokens[j] * hidden);
}

void CpuBackend::run_experts_many(Activations x, std::vector<ExpertWork>& experts, float* out) {
  for (ExpertWork& e : experts)
    e.quantizes_tiles =
        uses_int8(e.w.down) && std::min(panel_lanes(e.w.gate), panel_lanes(e.w.up)) % 32 == 0 && !observer_ && !e.w.down.sides;
  lay_out_inner(experts);
  // Gate and up of (expert, panel), the largest experts first so that the loop's end is short.
  struct Task {
    int32_t expert;
    int32_t panel;
  };
  std::vector<Task> tasks;
  std::vector<int32_t> by_size(experts.size());
  std::iota(by_size.begin(), by_size.end(), 0);
  std::stable_sort(by_size.begin(), by_size.end(), [&](int32_t a, int32_t b) {
    return experts[static_cast<size_t>(a)].tokens.size() > experts[static_cast<size_t>(b)].tokens.size();
  });
  for (int32_t e : by_size) {
    const Swiglu& w = experts[static_cast<size_t>(e)].w;
    const int64_t lanes = std::min(panel_lanes(w.gate), panel_lanes(w.up));
    for (int64_t p = 0; p < ceil_div(w.gate.rows, lanes); ++p) tasks.push_back({e, static_cast<int32_t>(p)});
  }
  pool_.parallel_for(static_cast<int64_t>(tasks.size()), [&](int64_t chunk, int thread) {
    const ExpertWork& expert = experts[static_cast<size_t>(tasks[static_cast<size_t>(chunk)].expert)];
    ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
    const int64_t lanes = std::min(panel_lanes(expert.w.gate), panel_lanes(expert.w.up)), inner = expert.w.gate.rows;
    const int64_t row0 = tasks[static_cast<size_t>(chunk)].panel * lanes, n_cols = std::min(lanes, inner - row0);
    const int64_t tokens = static_cast<int64_t>(expert.tokens.size());
    const bool all = tokens == x.n;
    if (prefers_dots(expert.w.gate, tokens) && prefers_dots(expert.w.up, tokens)) {
      const int32_t* rows = all ? nullptr : expert.tokens.data();
      for (AlignedBuffer<float>& tile : scratch.tile) tile.resize(static_cast<size_t>(kTokenBlock * lanes));
      multiply_dots(expert.w.gate, row0, n_cols, x, rows, tokens, scratch.tile[0].data(), lanes, &scratch);
      multiply_dots(expert.w.up, row0, n_cols, x, rows, tokens, scratch.tile[1].data(), lanes, &scratch);
      for (int64_t j = 0; j < tokens; ++j)
        activate(expert, j, row0, n_cols, scratch.tile[0].data() + j * lanes, scratch.tile[1].data() + j * lanes);
      return;
    }
    Panel gate = pack(expert.w.gate, row0, 0, &scratch), up = pack(expert.w.up, row0, 1, &scratch);
    scratch.tile[0].resize(static_cast<size_t>(kTokenBlock * gate.lanes));
    scratch.tile[1].resize(static_cast<size_t>(kTokenBlock * up.lanes));
    const size_t next = static_cast<size_t>(chunk + pool_.n_threads());  // what this thread is likely to do next
    for (int64_t j0 = 0; j0 < tokens; j0 += kTokenBlock) {
      const int64_t n = std::min(kTokenBlock, tokens - j0);
      const Activations block = all ? x.rows(j0, n) : x;
      const int32_t* rows = all ? nullptr : expert.tokens.data() + j0;
      if (j0 + kTokenBlock >= tokens && next < tasks.size()) {
        const Swiglu& w = experts[static_cast<size_t>(tasks[next].expert)].w;
        gate.q8.ahead = rows_ahead(w.gate, tasks[next].panel * lanes);
        up.q8.ahead = rows_ahead(w.up, tasks[next].panel * lanes);
      }
      multiply_panel(gate, block, rows, n, scratch.tile[0].data(), &scratch);
      multiply_panel(up, block, rows, n, scratch.tile[1].data(), &scratch);
      for (int64_t j = 0; j < n; ++j)
        activate(expert, j0 + j, row0, n_cols, scratch.tile[0].data() + j * gate.lanes, scratch.tile[1].data() + j * up.lanes);
    }
  });
  quantize_inner(experts);

  // Down: a strip of output features passes through all experts in order, so nobody else writes where it adds. The panels of a
  // strip follow each other within an expert, while its tokens are near.
  const int64_t hidden = experts[0].w.down.rows;
  int64_t lanes = kernels_.panel_lanes;
  for (const ExpertWork& expert : experts) lanes = std::min(lanes, panel_lanes(expert.w.down));
  const int64_t n_panels = ceil_div(hidden, lanes), in_strip = std::clamp<int64_t>(n_panels / (8 * pool_.n_threads()), 1, 4);
  pool_.parallel_for(ceil_div(n_panels, in_strip), [&](int64_t strip, int thread) {
    const int64_t first = strip * in_strip, last = std::min(n_panels, first + in_strip);
    for (size_t e = 0; e < experts.size(); ++e) {
      for (int64_t p = first; p < last; ++p) {
        Ahead ahead;
        if (p + 1 < last)
          ahead = rows_ahead(experts[e].w.down, (p + 1) * lanes);
        else if (e + 1 < experts.size())
          ahead = rows_ahead(experts[e + 1].w.down, first * lanes);
        else
          ahead = rows_ahead(experts[0].w.down, (strip + pool_.n_threads()) * in_strip * lanes);
        add_down(experts[e], p * lanes, std::min(lanes, hidden - p * lanes), ahead, out, &scratch_[static_cast<size_t>(thread)]);
      }
    }
  });
}

// Inner activations [col0, col0 + n_cols) of one row; `gate` and `up` are overwritten.
void CpuBackend::activate(const ExpertWork& expert, int64_t row, int64_t col0, int64_t n_cols, float* gate, float* up) {
  const Activations& inner = expert.inner;
  if (const SideRow* side = expert.side(expert.gate_sides, row)) add_outer(*side, col0, n_cols, gate);
  if (const SideRow* side = expert.side(expert.up_sides, row)) add_outer(*side, col0, n_cols, up);
  kernels_.silu_mul(gate, up, n_cols, up);
  if (expert.quantizes_tiles)
    kernels_.quantize_row(up, n_cols, inner.q8.blocks + (row * inner.k + col0) / 32);
  else
    std::memcpy(inner_.data() + expert.offset + row * inner.k + col0, up, static_cast<size_t>(n_cols) * sizeof(float));
}

// out[token, row0 ..] += weight * down(inner), n_cols features for the tokens of one expert.
void CpuBackend::add_down(const ExpertWork& expert, int64_t row0, int64_t n_cols, Ahead ahead, float* out,
                          ThreadScratch* scratch) {
  const Activations& inner = expert.inner;
  const bool dots = prefers_dots(expert.w.down, inner.n);
  Panel down = dots ? Panel{} : pack(expert.w.down, row0, 0, scratch);
  const int64_t stride = dots ? kernels_.panel_lanes : down.lanes, hidden = expert.w.down.rows;
  AlignedBuffer<float>& tile = scratch->tile[0];
  tile.resize(static_cast<size_t>(kTokenBlock * stride));
  for (int64_t j0 = 0; j0 < inner.n; j0 += kTokenBlock) {
    const int64_t n = std::min(kTokenBlock, inner.n - j0);
    if (j0 + n == inner.n) down.q8.ahead = ahead;
    if (dots)
      multiply_dots(expert.w.down, row0, n_cols, inner, nullptr, n, tile.data(), stride, scratch);
    else
      multiply_panel(down, inner.rows(j0, n), nullptr, n, tile.data(), scratch);
    for (int64_t j = 0; j < n; ++j) {
      const size_t at = static_cast<size_t>(j0 + j);
      kernels_.add_scaled(tile.data() + j * stride, expert.weights[at], n_cols, out + expert.tokens[at] * hidden + row0);
    }
  }
}

}  // namespace kimi::cpu
