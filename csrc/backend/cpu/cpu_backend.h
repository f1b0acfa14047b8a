// The CPU's operations: how work is cut into chunks for the pool, and scratch. Arithmetic lives in the kernel table.
#pragma once
#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/cpu_options.h"
#include "backend/cpu/kernels/kernel_table.h"
#include "backend/kv_view.h"
#include "base/aligned_buffer.h"
#include "base/memory.h"

namespace kimi::cpu {

// Rows of activations, in float and (once quantized) in int8.
struct Activations {
  const float* x = nullptr;  // [n, k], rows `stride` apart
  int64_t n = 0, k = 0, stride = 0;
  Q8Rows q8{};  // q8.blocks == nullptr: not quantized
  Activations rows(int64_t first, int64_t count) const;
};

// out[j, r] = dot(w row r, x row j)
struct Product {
  Matrix w;
  Activations x;
  float* out;  // [x.n, out_stride]
  int64_t out_stride;
  RowForm form;  // of the rows of x
};

constexpr int64_t kDotRows = 4;  // up to this many rows, dot kernels are faster than unpacking a panel

// A row of x on its way through an adapter's factors.
struct SideRow {
  const LowRank* side;
  const float* x;          // [side->cols]
  float* out;              // [side->rows], added to
  float weight = 1.0f;     // of what is added
  float* inner = nullptr;  // [side->rank] a x
};

// A step's slice in one layer.
struct AttentionSlice {
  int64_t row0, n;           // rows of the batch
  const int32_t* positions;  // [n] ascending
  RowForm form;
  KvLayer cache;
  int64_t n_out, out0;  // results are wanted of the last n_out; the first of them among all results
  int32_t adapter;
};

// The attention of one layer.
struct MlaCall {
  MlaArgs args;
  std::vector<AttentionSlice> slices;  // the expanded ones first
  int64_t n, n_out;                    // rows of the batch, and of all results
  explicit MlaCall(const MlaArgs& given);
};

// Queries side by side in the lanes of a tile of absorbed attention: n_heads of every token, token by token. The tokens of a tile
// are of one session and split their keys alike.
struct LatentTile {
  KvLayer cache;
  int64_t token0, n_tokens, head0, n_heads;
  int64_t end;         // keys that the last token sees
  int64_t split_keys;  // keys of one task
  int64_t n_splits;
  int64_t task0;  // first of its tasks within its group of tiles

  int64_t n_lanes() const { return n_tokens * n_heads; }
  int64_t token(int64_t lane) const { return token0 + lane / n_heads; }
  int64_t head(int64_t lane) const { return head0 + lane % n_heads; }
};

// What one thread needs while it works on a panel of weight rows.
struct ThreadScratch {
  AlignedBuffer<uint8_t> panel_q[2];
  AlignedBuffer<float> panel_scale[2], panel_min[2], panel_f32[2];
  AlignedBuffer<float> decoded, tile[2], gathered, attention;
  AlignedBuffer<Q8Block> gathered_q8;
};

// A panel of `lanes` weight rows, unpacked: int8 for quantized weights, floats otherwise.
struct Panel {
  bool is_q8;
  PanelQ8 q8;
  const float* f32;  // [k, lanes]
  int64_t k, lanes;
};

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuOptions& options, int n_threads, const KernelTable& kernels);
  const char* name() const override { return "cpu"; }
  const char* isa() const override { return kernels_.name; }
  bool rounds_activations() const override { return !float_activations_; }
  bool takes_adapters() const override { return true; }
  int n_threads() const override { return pool_.n_threads(); }
  void set_interrupt(Interrupt* interrupt) override { pool_.set_interrupt(interrupt); }
  void check_interrupt() override { pool_.check_interrupt(); }
  void set_observer(InputObserver* observer) override { observer_ = observer; }
  bool observed() const override { return observer_ != nullptr; }

  void for_each(int64_t n, const std::function<void(int64_t)>& body) override {
    pool_.parallel_for(n, [&](int64_t i, int) { body(i); });
  }
  Buffer allocate(size_t bytes) override;
  Buffer adopt(const float* host, int64_t n) override;
  Matrix prepare(const Matrix& w, Use) override { return w; }
  uint64_t available_memory() const override { return memory_info().available; }
  void upload(void* out, const void* host, int64_t bytes) override { copy(out, host, bytes); }
  void download(void* host, const void* x, int64_t bytes) override { copy(host, x, bytes); }
  void copy(void* out, const void* x, int64_t bytes) override;
  void clear(void* out, int64_t bytes) override;
  void finish() override {}
  std::unique_ptr<Step> new_step() override { return std::make_unique<Step>(); }
  void run_step(const Step&, const StepKey&, const std::function<void()>& body) override { body(); }

  void embed(const Matrix& table, const Step& step, float* out) override;
  void gather_rows(const Step& step, const float* x, int64_t dim, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) override;
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim, float* out) override;
  void linear(const LinearArgs& args) override;
  void linear_to_host(const LinearArgs& args) override { linear(args); }
  void ffn(const FfnArgs& args) override;
  void moe_ffn(const MoeArgs& args) override;
  void mla_attention(const MlaArgs& args) override;
  void patches(const PatchArgs& args) override;
  void merge_rows(const MergeArgs& args) override;
  void vit_attention(const VitAttentionArgs& args) override;
  void add(const float* x, int64_t n, float* out) override;

 private:
  // matmul.cpp
  // Whether products with w are taken in int8; otherwise its rows are decoded and everything is float.
  bool uses_int8(const Matrix& w) const { return !float_activations_ && !quant::format_of(w.type).is_float(); }
  void quantize(Activations* x, AlignedBuffer<Q8Block>* buffer);
  void quantize_for(const Matrix& w, Activations* x, AlignedBuffer<Q8Block>* buffer) {
    if (uses_int8(w)) quantize(x, buffer);
  }
  // The product of rows of which the first n_expanded are expanded: one, or two where their bits differ.
  void add_product(std::vector<Product>* products, const Matrix& w, const Activations& x, int64_t n_expanded, float* out,
                   int64_t out_stride) const;
  // Activations quantized as the weights need. after: the weights that are multiplied next, where that is known.
  void multiply(const std::vector<Product>& products, const uint8_t* after = nullptr);
  void multiply_few(const std::vector<Product>& products, const uint8_t* after);
  void multiply_decoded(const Matrix& w, int64_t row0, int64_t n_rows, const Product& product, ThreadScratch* scratch);
  void multiply_many(const std::vector<Product>& products);
  void multiply_float(const Product& product, const LinearArgs* epilogue, bool bf16);
  template <typename Form>
  void multiply_in(const Form& form, const Product& product, const LinearArgs* epilogue);
  void finish_tile(const LinearArgs& args, float* tile, int64_t tile_stride, int64_t row0, int64_t n_rows, int64_t col0,
                   int64_t n_cols);
  Panel pack(const Matrix& w, int64_t row0, int64_t slot, ThreadScratch* scratch);
  // The rows of one panel, for the GEMM that runs before they are packed.
  Ahead rows_ahead(const Matrix& w, int64_t row0) const {
    if (!uses_int8(w) || row0 >= w.rows) return {};
    return {w.data + row0 * w.row_bytes, std::min(kernels_.panel_lanes, w.rows - row0) * w.row_bytes};
  }
  void pack_float(const Matrix& w, int64_t row0, int64_t lanes, ThreadScratch* scratch, float* out);
  // tile[j, lane] for j < n: rows `rows[j]` of x, or j when rows is nullptr
  void multiply_panel(const Panel& panel, const Activations& x, const int32_t* rows, int64_t n, float* tile,
                      ThreadScratch* scratch);
  // The same product without a panel, for few rows: int8 dots give the same bits either way, and skip the unpacking.
  bool prefers_dots(const Matrix& w, int64_t n) const { return uses_int8(w) && n <= kDotRows; }
  void multiply_dots(const Matrix& w, int64_t row0, int64_t n_rows, const Activations& x, const int32_t* rows, int64_t n,
                     float* tile, int64_t tile_stride, ThreadScratch* scratch);
  int64_t panel_lanes(const Matrix& w) const { return uses_int8(w) ? kernels_.panel_lanes : kernels_.tile_lanes; }
  void for_rows(int64_t n, int64_t cost_per_row, const std::function<void(int64_t)>& body);

  // sides.cpp
  void add_side_rows(const Matrix& w, const float* x, int64_t n, const int32_t* adapters, float* out, int64_t out_stride,
                     std::vector<SideRow>* rows) const;
  void take_inner(std::vector<SideRow>* rows);  // sets inner, until the next call
  void add_outer(const SideRow& row, int64_t col0, int64_t n_cols, float* out) const;
  // All of it. Rows that add to the same out do so in their order.
  void add_sides(std::vector<SideRow> rows);
  void linear_with_sides(LinearArgs args, std::vector<SideRow> sides);  // matmul.cpp

  // observe.cpp; with an observer only
  void show(const std::vector<ProductInput>& inputs);
  void show_heads(const Matrix& stack, const float* x, int64_t n);

  // ffn.cpp
  struct ExpertWork {  // one expert and the tokens that go through it
    Swiglu w;
    std::vector<int32_t> tokens;                // rows of x; ascending
    std::vector<float> weights;                 // their routing weights
    int64_t offset = 0;                         // of its inner activations in inner_
    Activations inner;                          // the same as input of its down projection
    bool quantizes_tiles = false;               // inner is written in int8 only, tile by tile
    std::vector<SideRow> gate_sides, up_sides;  // of the tokens; empty: none
    const SideRow* side(const std::vector<SideRow>& sides, int64_t row) const {
      return sides.empty() || !sides[static_cast<size_t>(row)].side ? nullptr : &sides[static_cast<size_t>(row)];
    }
  };
  void route(const MoeArgs& args, std::vector<ExpertWork>* experts);
  void run_experts(const float* x, int64_t n, int64_t n_expanded, const int32_t* adapters, std::vector<ExpertWork>& experts,
                   float* out);
  void run_experts_as(RowForm form, const float* x, int64_t n, const int32_t* adapters, std::vector<ExpertWork>& experts,
                      float* out);
  void begin_sides(const float* x, const int32_t* adapters, std::vector<ExpertWork>& experts);
  void add_down_sides(const int32_t* adapters, const std::vector<ExpertWork>& experts, float* out);
  int64_t lay_out_inner(std::vector<ExpertWork>& experts);
  void quantize_inner(const std::vector<ExpertWork>& experts);
  void activate(const ExpertWork& expert, int64_t row, int64_t col0, int64_t n_cols, float* gate, float* up);
  void run_experts_few(Activations x, std::vector<ExpertWork>& experts, float* out);
  void run_experts_many(Activations x, std::vector<ExpertWork>& experts, float* out);
  void add_down(const ExpertWork& expert, int64_t row0, int64_t n_cols, Ahead ahead, float* out, ThreadScratch* scratch);

  // mla.cpp
  void append_to_cache(const MlaCall& call, float* q, const float* ckv);
  void store_latent(const KvLayer& cache, int64_t rank, int64_t rope, int64_t position, const float* latent) const;
  const float* latent_rows(const KvLayer& cache, int64_t rank, int64_t rope, int64_t first, int64_t n, float* scratch) const;
  // Whether keys and values are multiplied as bf16: where the weights around them are multiplied as bytes anyway.
  bool attends_in_bf16(const MlaArgs& args, const KvLayer& cache) const;

  // mla_absorbed.cpp
  struct LatentTiles {  // that are multiplied alike
    bool bytes, bf16;   // what queries and keys are multiplied as; neither: floats
    int64_t lanes;
    std::vector<LatentTile> tiles;
  };
  using Slices = std::span<const AttentionSlice* const>;  // whose results lie one after the other
  void attend_absorbed(const MlaArgs& args, Slices slices, const float* q, float* attended);
  std::vector<LatentTiles> lay_out_tiles(const MlaArgs& args, Slices slices);
  void attend_latents(const MlaArgs& args, Slices slices, const float* q);
  void attend_group(const MlaArgs& args, const LatentTiles& tiles, std::span<LatentTile> group, const int32_t* positions,
                    int64_t n, const float* q);
  void attend_split(const MlaArgs& args, const LatentTiles& tiles, const LatentTile& tile, const int32_t* positions,
                    int64_t index, int64_t split, int thread);
  void merge_splits(const LatentTiles& tiles, std::span<const LatentTile> group, int64_t n, int64_t rank);
  void quantize_queries(const KvRow& row, int64_t rank, int64_t rope, int64_t n_tiles);

  // mla_expanded.cpp
  void attend_expanded(const MlaArgs& args, const AttentionSlice& slice, const float* q, float* attended);
  template <typename Form>
  class ExpandedAttention;

  // vit.cpp
  template <typename Form>
  void attend_picture_in(const Form& form, int64_t n, int64_t heads, int64_t head_dim);

  const KernelTable& kernels_;
  const bool float_activations_;
  ThreadPool pool_;
  InputObserver* observer_ = nullptr;
  std::vector<ThreadScratch> scratch_;
  AlignedBuffer<Q8Block> q8_x_, q8_inner_, q8_heads_, q8_gathered_;
  struct {
    AlignedBuffer<int8_t> q;
    AlignedBuffer<float> scale;
    AlignedBuffer<int32_t> sum;
  } q8_queries_;  // as LatentBlockQ8 wants them
  AlignedBuffer<uint16_t> bf16_queries_, converted_;
  AlignedBuffer<float> packed_, inner_, gate_, products_, q_, ckv_, attended_, heads_, states_, shares_, expanded_, latent_,
      gathered_, side_inner_;
};

}  // namespace kimi::cpu
