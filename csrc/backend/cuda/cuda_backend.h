// The operations on a GPU: shapes, scratch, and which kernels run in which order. Arithmetic lives in kernels/.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "backend/cuda/device.h"
#include "backend/cuda/kernels/products.h"
#include "backend/registry.h"

namespace kimi::cuda {

struct CudaOptions {
  bool float_activations = false;  // never round activations to int8: slower, exact on the file's own weights
  int n_threads = 0;               // of this machine, for what is not done on the GPU; 0: chosen by the processors at hand

  // "activations", "n_threads". Throws Error(bad_request).
  static CudaOptions from(const BackendOptions& options);
};

std::unique_ptr<Backend> make_cuda_backend(const CudaOptions& options);

// Rows of activations on the device, in float and (once quantized) in int8.
struct Rows {
  const float* x = nullptr;  // [n, k], rows `stride` apart
  int64_t n = 0, k = 0, stride = 0;
  Q8Rows q8{};

  Rows from(int64_t first) const;  // all rows but the first ones
};

// Which rows meet which matrices, and where results go.
struct Placement {
  RowMap map;
  int64_t n_tiles = 0;               // with map.tiles
  int64_t tile_rows = 0;             // of map.tiles
  RowForm form = RowForm::absorbed;  // expanded: products in int8 go through the tensor cores
};

// A kernel of ProductArgs, and how much a block of it takes.
struct ProductKernel {
  const char* name;
  void (*run)(ProductArgs);
  int64_t rows, tile_rows;  // of the matrix, of x
  int threads;
  size_t shared;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const CudaOptions& options);
  ~CudaBackend() override;
  const char* name() const override { return "cuda"; }
  const char* isa() const override { return device_.description().c_str(); }
  int n_threads() const override { return pool_.n_threads(); }
  bool rounds_activations() const override { return !float_activations_; }
  void set_interrupt(Interrupt* interrupt) override { pool_.set_interrupt(interrupt); }
  void check_interrupt() override { pool_.check_interrupt(); }
  void set_observer(InputObserver* observer) override { observer_ = observer; }
  bool observed() const override { return observer_ != nullptr; }

  Buffer allocate(size_t bytes) override { return device_.allocate(bytes); }
  uint64_t available_memory() const override { return device_.available_memory(); }
  Buffer adopt(const float* host, int64_t n) override;
  // Throws Error(unsupported, "device.format") for formats that have no planes.
  Matrix prepare(const Matrix& w, Use use) override;
  void upload(void* out, const void* host, int64_t bytes) override { device_.upload(out, host, static_cast<size_t>(bytes)); }
  void download(void* host, const void* x, int64_t bytes) override { device_.download(host, x, static_cast<size_t>(bytes)); }
  void copy(void* out, const void* x, int64_t bytes) override { device_.copy(out, x, static_cast<size_t>(bytes)); }
  void clear(void* out, int64_t bytes) override { device_.clear(out, static_cast<size_t>(bytes)); }
  void finish() override { device_.finish(); }

  std::unique_ptr<Step> new_step() override { return std::make_unique<Step>(); }
  void run_step(const Step& step, const StepKey& key, const std::function<void()>& body) override;
  void for_each(int64_t n, const std::function<void(int64_t)>& body) override;

  void embed(const Matrix& table, const Step& step, float* out) override;
  void gather_rows(const Step& step, const float* x, int64_t dim, float* out) override;
  void rms_norm(const float* x, const float* weight, float eps, int64_t n, int64_t dim, float* out) override;
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, int64_t dim, float* out) override;
  void add(const float* x, int64_t n, float* out) override;
  void linear(const LinearArgs& args) override;
  void linear_to_host(const LinearArgs& args) override;
  void ffn(const FfnArgs& args) override;
  void moe_ffn(const MoeArgs& args) override;
  void mla_attention(const MlaArgs& args) override;
  void patches(const PatchArgs& args) override;
  void merge_rows(const MergeArgs& args) override;
  void vit_attention(const VitAttentionArgs& args) override;

 private:
  using Lock = std::lock_guard<std::recursive_mutex>;

  // Launches a kernel after all that was launched before.
  template <typename... P, typename... A>
  void run(const char* name, void (*kernel)(P...), dim3 grid, int threads, size_t shared, A&&... args) {
    Launch how{grid, dim3(static_cast<unsigned>(threads)), shared, device_.stream()};
    how.dependent = true;
    check(launch(name, kernel, how, std::forward<A>(args)...), name);
  }
  // A thread for each of n numbers.
  template <typename... P, typename... A>
  void run_each(const char* name, void (*kernel)(P...), int64_t n, A&&... args) {
    if (n > 0) run(name, kernel, dim3(static_cast<unsigned>((n + 127) / 128)), 128, 0, std::forward<A>(args)...);
  }
  template <typename T>
  T* scratch(Buffer* buffer, int64_t n) {
    return reinterpret_cast<T*>(room(buffer, (n * static_cast<int64_t>(sizeof(T)) + 3) / 4));
  }

  // products.cu
  bool uses_int8(const Matrix& w) const { return !float_activations_ && !quant::format_of(w.type).is_float(); }
  struct Q8Scratch {
    Buffer q, scale, half_sum;
  };
  void quantize(Rows* rows, Q8Scratch* to);
  void quantize_for(const Matrix& w, Rows* rows, Q8Scratch* to) {
    if (uses_int8(w) && !rows->q8.q) quantize(rows, to);
  }
  // Activations quantized as the weights need.
  void product(const Matrix& w, const Rows& x, const Placement& placement, float* out);
  void product_of_floats(const Matrix& w, const Rows& x, const Placement& placement, float* out);
  void linear_of_form(const LinearArgs& args);
  void product_bf16(const Matrix& w, const Rows& x, float* out);
  void multiply_bf16(const Matrix& w, const uint16_t* x, int64_t n, float* out);  // x [n, cols rounded up to 8]
  const uint16_t* weights_as_bf16(const Matrix& w, int64_t padded_cols);
  const uint16_t* rows_as_bf16(const Rows& x, int64_t padded_cols);
  // The places of a dense placement or of a stack: the first n_expanded in that form, the others absorbed.
  void product_by_form(const Matrix& w, const Rows& x, const Placement& placement, int64_t n_expanded, float* out);
  void launch_product(const Matrix& w, const Rows& x, const Placement& placement, const ProductKernel& kernel, float* out);
  int64_t tile_rows_for(const Swiglu& experts, RowForm form, int64_t mean_rows) const;
  static Placement dense(int64_t n, int64_t out_stride);
  static RowForm form_of(int64_t n_expanded) { return n_expanded > 0 ? RowForm::expanded : RowForm::absorbed; }
  // Arguments with rows of one form each: the expanded ones, then the absorbed ones, where there are any.
  template <typename Args>
  static std::vector<Args> by_form(const Args& args, int64_t x_stride, int64_t out_stride);

  // observe.cpp; with an observer only
  void show(const Matrix& w, const Rows& x, const Placement& placement);

  // gemm.cu
  static ProductKernel gemm_int8_kernel(quant::Type type);

  // ffn.cu
  void ffn_of_form(const FfnArgs& args);
  void moe_ffn_of_form(const MoeArgs& args);
  // out [places, hidden]; `in` and `down` name the same places.
  void swiglu(const Swiglu& w, Rows* x, int64_t n_places, Placement in, Placement down, float* out);

  // mla.cu
  void attend_run(const MlaArgs& args, const KvPageLayout& layout, int64_t out0, int64_t n_out, const int* rows,
                  const float* latent_q, float* context);

  // What a step holds, on the device.
  struct StepValues {
    Buffer memory, turns;
    const uint64_t* pages = nullptr;  // addresses, of all slices
    const int* positions = nullptr;   // [n_rows]
    const int* first_page = nullptr;  // [n_rows] of the row's slice
    const int* all = nullptr;         // [n_rows] 0, 1, 2, ...
    const int* wanted = nullptr;      // [n_wanted] rows
    const float* cos_sin = nullptr;   // [n_rows, rope / 2, 2]; nullptr: not yet
    const Step* step = nullptr;
    bool kept = false;  // while run_step runs: it does not change
  };
  void upload_rows(const Step& step);
  void upload_angles(const MlaArgs& args);

  const bool float_activations_;
  Device device_;
  ThreadPool pool_;
  InputObserver* observer_ = nullptr;
  std::map<const uint8_t*, const uint8_t*> origins_;  // of prepared matrices, in the file
  std::vector<Buffer> weights_;
  std::map<std::vector<int64_t>, const uint8_t*> prepared_;
  std::map<const float*, const float*> adopted_;  // by address on the device
  StepValues values_;
  Q8Scratch q8_x_, q8_inner_, q8_heads_;
  Buffer decoded_, converted_, converted_w_, products_, gathered_, gate_, inner_, logits_, down_, shared_, routing_, q_, ckv_,
      latent_q_, context_, splits_, states_, attended_, pixels_, k_, v_, leaving_;
};

inline Rows Rows::from(int64_t first) const {
  Rows rest{x + first * stride, n - first, k, stride, q8};
  if (q8.q) rest.q8 = {q8.q + first * k, q8.scale + first * (k / 32), q8.half_sum + first * (k / 16)};
  return rest;
}

template <typename Args>
std::vector<Args> CudaBackend::by_form(const Args& args, int64_t x_stride, int64_t out_stride) {
  Args expanded = args, absorbed = args;
  expanded.n = expanded.n_expanded = std::min(args.n_expanded, args.n);
  absorbed.n = args.n - expanded.n;
  absorbed.n_expanded = 0;
  absorbed.x += expanded.n * x_stride;
  absorbed.out += expanded.n * out_stride;
  std::vector<Args> parts;
  if (expanded.n > 0) parts.push_back(expanded);
  if (absorbed.n > 0) parts.push_back(absorbed);
  return parts;
}

}  // namespace kimi::cuda
