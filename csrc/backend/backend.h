// What the network may ask of a machine. The model is told once over these operations; a backend differs inside them only.
//
// Pointers are the backend's memory: the model passes them on and never looks behind them. Matrices are [rows, cols],
// row-major, one format for a whole matrix. All operations are synchronous and throw Error: cancelled when the interrupt
// of the running request asked for it, out_of_memory when scratch cannot be had.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/kv_view.h"
#include "backend/observer.h"
#include "base/thread_pool.h"
#include "quant/format.h"

namespace kimi {

// A weight matrix, or a stack of equal ones (experts, heads).
struct Matrix {
  quant::Type type = quant::Type::F32;
  const uint8_t* data = nullptr;
  int64_t rows = 0, cols = 0;  // out features, in features
  int64_t row_bytes = 0;
  int64_t count = 1;        // matrices in the stack
  int64_t stack_bytes = 0;  // from one to the next
  explicit operator bool() const { return data != nullptr; }
  Matrix at(int64_t i) const {
    Matrix one = *this;
    one.data = data + i * stack_bytes;
    one.count = 1;
    return one;
  }
};

// The form in which a row is computed: two ways to the same function, which round differently. The caller names the form of each
// row, from the content of its sequence alone (docs/architecture.md, "The same bits"); a backend must give a row the same bits
// whatever the batch holds besides. In a batch the expanded rows come first.
//   expanded  attention over keys and values made of the latents; float weights are unpacked for a GEMM
//   absorbed  attention in the latent space, keys split by the row's own position; float weights are streamed
// Quantized weights times int8 activations give the same bits streamed or unpacked: there the backend takes what is faster.
enum class RowForm : uint8_t { absorbed, expanded };
constexpr int64_t kAllRows = INT64_MAX;

// How a product is taken: int8 activations for quantized weights and floats for the others; floats always; both sides rounded to
// bf16 and sums in float, or floats where the machine has no bf16.
enum class Numbers { by_weights, floats, bf16 };

enum class Activation { none, gelu_tanh, gelu_erf };

struct LinearArgs {
  const float* x;  // [n, w.cols]
  int64_t n;
  Matrix w;
  const float* bias = nullptr;  // [w.rows]
  Activation activation = Activation::none;
  bool add = false;  // out += instead of out =
  Numbers numbers = Numbers::by_weights;
  float* out;                     // [n, out_stride]
  int64_t out_stride = 0;         // 0: w.rows
  int64_t n_expanded = kAllRows;  // the first rows; the others are absorbed
};

// SwiGLU: down(silu(gate x) * up x)
struct Swiglu {
  Matrix gate, up, down;  // [inner, hidden], [inner, hidden], [hidden, inner]; stacks of experts when routed
};

struct FfnArgs {
  const float* x;  // [n, hidden] normed input
  int64_t n;
  Swiglu w;
  float* out;  // [n, hidden], added to
  int64_t n_expanded;
};

struct MoeArgs {
  const float* x;  // [n, hidden] normed input
  int64_t n;
  Matrix router;                // ffn_gate_inp [n_experts, hidden]
  const float* selection_bias;  // e_score_correction_bias [n_experts]; nullptr: none
  bool sigmoid;                 // scoring_func; false: softmax
  int64_t num_experts_per_tok;
  bool norm_topk_prob;
  float routed_scaling_factor;
  Swiglu routed;  // stacks of n_experts
  Swiglu shared;  // empty: none
  float* out;     // [n, hidden], added to
  int64_t n_expanded;
};

// The rows of one session and one form in a batch. Every position before the last one is in the cache or elsewhere in the batch.
struct AttentionSlice {
  int64_t row0;              // first row in the batch
  int64_t n;                 // new tokens
  const int32_t* positions;  // [n] ascending
  RowForm form;
  KvLayer cache;
  int64_t n_out;  // results are wanted of the last n_out of them
  int64_t out0;   // first row among the results
};

struct MlaArgs {
  const float* x;  // [n, hidden] normed input
  int64_t n;
  int64_t n_out;                              // of all slices
  const std::vector<AttentionSlice>* slices;  // the expanded ones first
  int64_t num_heads, qk_nope_head_dim, qk_rope_head_dim, v_head_dim, kv_lora_rank;
  Matrix q;                // [num_heads * (nope + rope), hidden]
  Matrix kv_a;             // [kv_lora_rank + rope, hidden]
  const float* kv_a_norm;  // [kv_lora_rank]
  float kv_a_norm_eps;
  Matrix k_b;                  // stack of num_heads [kv_lora_rank, nope]
  Matrix v_b;                  // stack of num_heads [v_head_dim, kv_lora_rank]
  Matrix o;                    // [hidden, num_heads * v_head_dim]
  float scale;                 // of the softmax
  const float* rope_inv_freq;  // [rope / 2]
  float rope_mscale;           // of the rotated part (1 without YaRN)
  float* out;                  // [n_out, hidden], added to
};

struct VitAttentionArgs {
  const float* x;  // [n, hidden] normed input
  int64_t n, hidden, num_heads;
  Matrix q, k, v, o;
  const float *q_bias, *k_bias, *v_bias, *o_bias;
  const float* cos_sin;  // [n, head_dim / 2, 2]
  Numbers numbers;       // floats or bf16
  float* out;            // [n, hidden], added to
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;  // "cpu avx512"
  virtual int n_threads() const = 0;
  virtual void set_interrupt(Interrupt* interrupt) = 0;
  virtual void check_interrupt() = 0;
  virtual void set_observer(InputObserver* observer) = 0;  // of the following operations; nullptr: none
  virtual bool observed() const = 0;

  // body(0) to body(n - 1) on the backend's threads of this machine, a few at a time.
  virtual void for_each(int64_t n, const std::function<void(int64_t)>& body) = 0;
  virtual void embed(const Matrix& table, const int32_t* ids, int64_t n, float* out) = 0;  // rows of the table
  virtual void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) = 0;
  // out may be x.
  virtual void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                          float* out) = 0;
  virtual void linear(const LinearArgs& args) = 0;
  virtual void ffn(const FfnArgs& args) = 0;
  virtual void moe_ffn(const MoeArgs& args) = 0;
  virtual void mla_attention(const MlaArgs& args) = 0;
  virtual void vit_attention(const VitAttentionArgs& args) = 0;
  virtual void add(const float* x, int64_t n, float* out) = 0;  // out += x
};

struct CpuOptions {
  int n_threads = 0;               // 0: count_cpus().threads
  std::string isa = "auto";        // or "generic", "avx2", "avx512"
  bool float_activations = false;  // never round activations to int8: slower, exact on the file's own weights
};
std::unique_ptr<Backend> make_cpu_backend(const CpuOptions& options);

}  // namespace kimi
