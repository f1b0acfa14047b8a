// What the network may ask of a device. The model is written once over these operations; backends differ only inside them.
//
// Pointers are the backend's memory, from allocate() or adopt(), unless they say that they are the host's: the model passes them
// on and never looks behind them. Matrices are [rows, cols], row-major, one format for a whole matrix, and have been prepared.
//
// Operations take effect in the order of their calls. They may return before they are done: errors surface at the latest in
// download(), linear_to_host() or finish(). They throw Error: cancelled when the interrupt of the running request asked for it,
// out_of_memory when scratch cannot be had. One thread calls them at a time; but pages of the cache are taken, copied, read and
// given back by any: allocate(), available_memory(), upload(), download(), copy(), clear() and the end of a Buffer may come
// beside an operation on other memory.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "backend/kv_view.h"
#include "backend/observer.h"
#include "backend/step.h"
#include "backend/tensor.h"
#include "base/thread_pool.h"

namespace kimi {

constexpr int64_t kAllRows = INT64_MAX;

// How a product is taken: int8 activations for quantized weights and floats for the others; floats always; both sides rounded to
// bf16 and sums in float, or floats where the machine has no bf16.
enum class ComputeType { by_weights, f32, bf16 };

enum class Activation { none, gelu_tanh, gelu_erf };

struct LinearArgs {
  const float* x;  // [n, w.cols]
  int64_t n;
  Matrix w;
  const float* bias = nullptr;  // [w.rows]
  Activation activation = Activation::none;
  bool add = false;  // out += instead of out =
  ComputeType compute_type = ComputeType::by_weights;
  float* out;                     // [n, out_stride]
  int64_t out_stride = 0;         // 0: w.rows
  int64_t n_expanded = kAllRows;  // the first rows; the others are absorbed
  // On the host, [n]: whose side products (Matrix::side) are added to each row, before bias and activation; nullptr: nobody's.
  const int32_t* adapters = nullptr;
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
  const int32_t* adapters = nullptr;  // as in LinearArgs
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
  const int32_t* adapters = nullptr;  // as in LinearArgs; the router has none
};

struct MlaArgs {
  const float* x;    // [step.n_rows, hidden] normed input
  const Step* step;  // whose caches are appended to, and whose adapters count
  int64_t layer;     // of the caches
  bool wanted_only;  // results are wanted of the step's wanted rows only, else of all
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
  float* out;                  // [rows wanted, hidden], added to
};

struct VitAttentionArgs {
  const float* x;  // [n, hidden] normed input
  int64_t n, hidden, num_heads;
  Matrix q, k, v, o;
  const float *q_bias, *k_bias, *v_bias, *o_bias;
  const float* cos_sin;               // [n, head_dim / 2, 2]
  ComputeType compute_type;           // floats or bf16
  float* out;                         // [n, hidden], added to
  const int32_t* adapters = nullptr;  // as in LinearArgs
};

struct PatchArgs {
  const uint8_t* pixels;  // on the host, [height, width, 3]
  int64_t height, width, patch_size;
  const float *mean, *std;  // on the host, [3], of values 0 to 1
  float* out;               // [height / patch_size * width / patch_size, (channel, y, x)]
};

struct MergeArgs {
  const float* x;  // [grid_h * grid_w, dim]
  int64_t grid_h, grid_w, merge, dim;
  float* out;  // [grid_h / merge * grid_w / merge, merge * merge * dim]: neighbours side by side, in reading order
};

// What a prepared matrix is for: rows of it are read (embeddings), or it is multiplied with.
enum class Use { rows, product };

// Everything that the operations of a body and their shapes depend on, beside the values of the step.
using StepKey = std::vector<int64_t>;

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;  // "cpu"
  virtual const char* isa() const = 0;   // the variant of its kernels: "avx512"
  virtual int n_threads() const = 0;
  virtual bool rounds_activations() const = 0;           // to int8, beside quantized weights
  virtual bool takes_adapters() const { return false; }  // whether its operations add side products
  virtual void set_interrupt(Interrupt* interrupt) = 0;
  virtual void check_interrupt() = 0;
  virtual void set_observer(InputObserver* observer) = 0;  // of the following operations; nullptr: none
  virtual bool observed() const = 0;

  // Memory. What it holds at first is undefined. Throws Error(out_of_memory).
  virtual Buffer allocate(size_t bytes) = 0;
  virtual uint64_t available_memory() const = 0;  // bytes that allocate() may still find; 0: unknown
  // Room for n floats; the old contents are lost when it has to grow.
  float* room(Buffer* buffer, int64_t n) {
    const size_t bytes = static_cast<size_t>(n) * sizeof(float);
    if (buffer->bytes() < bytes) {
      *buffer = Buffer();
      *buffer = allocate(bytes);
    }
    return buffer->floats();
  }
  // n floats of the host (norms, biases, tables) for operations to read. They must outlive the handle and not change.
  virtual Buffer adopt(const float* host, int64_t n) = 0;
  // A matrix, or a part of one, of the host: asked once after loading. It must stay as long as operations use it.
  virtual Matrix prepare(const Matrix& w, Use use) = 0;
  // Bytes from the host, to the host, within the backend's memory, and zeros.
  virtual void upload(void* out, const void* host, int64_t bytes) = 0;
  virtual void download(void* host, const void* x, int64_t bytes) = 0;  // waits for x
  virtual void copy(void* out, const void* x, int64_t bytes) = 0;       // which do not overlap
  virtual void clear(void* out, int64_t bytes) = 0;
  virtual void finish() = 0;  // waits for all operations

  virtual std::unique_ptr<Step> new_step() = 0;
  // Runs the body, whose operations read the step, or what was kept of a body with the same key. The body looks at no values,
  // neither of the step nor of memory.
  virtual void run_step(const Step& step, const StepKey& key, const std::function<void()>& body) = 0;

  // body(0) to body(n - 1) on the backend's threads of this machine, a few at a time.
  virtual void for_each(int64_t n, const std::function<void(int64_t)>& body) = 0;
  // The step's tokens, to their rows of out.
  virtual void embed(const Matrix& table, const Step& step, float* out) = 0;
  // The step's wanted rows of x, together. out may be x.
  virtual void gather_rows(const Step& step, const float* x, int64_t dim, float* out) = 0;
  virtual void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) = 0;
  // out may be x.
  virtual void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim,
                          float* out) = 0;
  virtual void add(const float* x, int64_t n, float* out) = 0;  // out += x
  virtual void linear(const LinearArgs& args) = 0;
  // The same with args.out on the host: what leaves the machine needs no memory of its own here.
  virtual void linear_to_host(const LinearArgs& args) = 0;
  virtual void ffn(const FfnArgs& args) = 0;
  virtual void moe_ffn(const MoeArgs& args) = 0;
  virtual void mla_attention(const MlaArgs& args) = 0;
  virtual void patches(const PatchArgs& args) = 0;
  virtual void merge_rows(const MergeArgs& args) = 0;
  virtual void vit_attention(const VitAttentionArgs& args) = 0;
};

}  // namespace kimi
