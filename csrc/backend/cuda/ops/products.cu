// Products with matrices, stacks of them and experts, in int8, floats and bf16.
#include <algorithm>

#include "backend/cuda/cuda_backend.h"
#include "backend/cuda/kernels/gemm_bf16.h"
#include "backend/cuda/kernels/rows.h"
#include "base/error.h"

namespace kimi::cuda {
namespace {

constexpr int64_t kHostRows = 64;  // of results that are on their way to the host at a time
constexpr int64_t kMaxGrid = 65535;

unsigned blocks_for(int64_t n, int64_t per_block) { return static_cast<unsigned>((n + per_block - 1) / per_block); }
int64_t padded(int64_t cols) { return (cols + 7) / 8 * 8; }

template <int kN>
struct OfInt8 {
  static void (*kernel(quant::Type type))(ProductArgs) {
    switch (type) {
#define KIMI_CASE(name)   \
  case quant::Type::name: \
    return product_int8<quant::Type::name, kN>;
      KIMI_CUDA_FORMATS(KIMI_CASE)
#undef KIMI_CASE
      default:
        return nullptr;
    }
  }
};

template <int kN>
struct OfFloats {
  static void (*kernel(quant::Type type))(ProductArgs) {
    switch (type) {
      case quant::Type::F32:
        return product_float<quant::Type::F32, kN>;
      case quant::Type::F16:
        return product_float<quant::Type::F16, kN>;
      case quant::Type::BF16:
        return product_float<quant::Type::BF16, kN>;
      default:
        return nullptr;
    }
  }
};

template <typename Number>
void (*decode_kernel(quant::Type type))(DecodeArgs) {
  switch (type) {
#define KIMI_CASE(name)   \
  case quant::Type::name: \
    return decode_planes<quant::Type::name, Number>;
    KIMI_CUDA_FORMATS(KIMI_CASE)
#undef KIMI_CASE
    default:
      return nullptr;
  }
}

void (*convert_kernel(quant::Type type))(ConvertArgs) {
  switch (type) {
    case quant::Type::F32:
      return convert_to_bf16<quant::Type::F32>;
    case quant::Type::F16:
      return convert_to_bf16<quant::Type::F16>;
    case quant::Type::BF16:
      return convert_to_bf16<quant::Type::BF16>;
    default:
      return nullptr;
  }
}

// How many rows of x a warp takes at a time: a row's bits do not depend on it.
constexpr int kFew = 1, kMany = 4;
bool takes_many(const Placement& placement) { return placement.map.tiles ? placement.tile_rows == kMany : placement.map.n > 1; }

template <template <int> typename Choose>
ProductKernel streaming_kernel(quant::Type type, const Placement& placement) {
  const bool many = takes_many(placement);
  return {"product",
          many ? Choose<kMany>::kernel(type) : Choose<kFew>::kernel(type),
          kProductWarps,
          many ? kMany : kFew,
          kProductWarps * kWarp,
          0};
}

DecodeArgs decode_args(const Matrix& w, void* out, int64_t out_stride) {
  return {w.data, w.stack_bytes, static_cast<int>(w.rows), static_cast<int>(w.cols), static_cast<int>(w.count), out, out_stride};
}

}  // namespace

Placement CudaBackend::dense(int64_t n, int64_t out_stride) {
  Placement placement{};
  placement.map.n = static_cast<int>(n);
  placement.map.x_step = 1;
  placement.map.out_step = out_stride;
  return placement;
}

int64_t CudaBackend::tile_rows_for(const Swiglu& experts, RowForm form, int64_t mean_rows) const {
  if (form == RowForm::expanded && uses_int8(experts.gate) && uses_int8(experts.up) && uses_int8(experts.down))
    return gemm_int8_kernel(experts.gate.type).tile_rows;
  return mean_rows > 1 ? kMany : kFew;
}

void CudaBackend::quantize(Rows* rows, Q8Scratch* to) {
  const int64_t n = rows->n * rows->k;
  QuantizeArgs args{rows->x,
                    rows->stride,
                    rows->n,
                    static_cast<int>(rows->k),
                    scratch<int8_t>(&to->q, n),
                    scratch<float>(&to->scale, n / 32),
                    scratch<int32_t>(&to->half_sum, n / 16)};
  run_each("quantize_rows", quantize_rows, n / 16, args);
  rows->q8 = {args.q, args.scale, args.half_sum};
}

void CudaBackend::launch_product(const Matrix& w, const Rows& x, const Placement& placement, const ProductKernel& kernel,
                                 float* out) {
  const RowMap& map = placement.map;
  const int64_t n_tiles = map.tiles ? placement.n_tiles : (map.n + kernel.tile_rows - 1) / kernel.tile_rows * w.count;
  KIMI_DCHECK(!map.tiles || placement.tile_rows == kernel.tile_rows);
  KIMI_CHECK(n_tiles <= kMaxGrid, ErrorKind::unsupported, "device.too_many_rows",
             "%lld rows at a time are more than the backend cuda can multiply: use a smaller chunk",
             static_cast<long long>(map.n));
  if (n_tiles == 0) return;
  ProductArgs args{w.data,   w.stack_bytes, w.row_bytes, static_cast<int>(w.rows), static_cast<int>(w.cols), x.q8, x.x,
                   x.stride, map,           out};
  run(kernel.name, kernel.run, dim3(blocks_for(w.rows, kernel.rows), static_cast<unsigned>(n_tiles)), kernel.threads,
      kernel.shared, args);
}

void CudaBackend::product(const Matrix& w, const Rows& x, const Placement& placement, float* out) {
  if (observer_) show(w, x, placement);
  if (!uses_int8(w)) return product_of_floats(w, x, placement, out);
  const bool tensor_cores = placement.map.tiles ? placement.tile_rows > kMany : placement.form == RowForm::expanded;
  launch_product(w, x, placement, tensor_cores ? gemm_int8_kernel(w.type) : streaming_kernel<OfInt8>(w.type, placement), out);
}

void CudaBackend::product_by_form(const Matrix& w, const Rows& x, const Placement& placement, int64_t n_expanded, float* out) {
  Placement first = placement, second = placement;
  first.map.n = static_cast<int>(n_expanded);
  first.form = RowForm::expanded;
  second.map.n -= first.map.n;
  if (second.map.x_rows) second.map.x_rows += n_expanded;
  if (first.map.n > 0) product(w, x, first, out);
  if (second.map.n > 0)
    product(w, second.map.x_rows ? x : x.from(n_expanded * second.map.x_step), second, out + n_expanded * second.map.out_step);
}

// Quantized weights are decoded first.
void CudaBackend::product_of_floats(const Matrix& w, const Rows& x, const Placement& placement, float* out) {
  Matrix floats = w;
  if (!quant::format_of(w.type).is_float()) {
    auto* decoded = scratch<float>(&decoded_, w.count * w.rows * w.cols);
    run_each("decode_planes", decode_kernel<float>(w.type), w.count * w.rows * w.cols / 32, decode_args(w, decoded, w.cols));
    floats.type = quant::Type::F32;
    floats.data = reinterpret_cast<const uint8_t*>(decoded);
    floats.row_bytes = w.cols * 4;
    floats.stack_bytes = w.rows * floats.row_bytes;
  }
  launch_product(floats, x, placement, streaming_kernel<OfFloats>(floats.type, placement), out);
}

const uint16_t* CudaBackend::weights_as_bf16(const Matrix& w, int64_t padded_cols) {
  auto* out = scratch<uint16_t>(&converted_w_, w.rows * padded_cols);
  if (quant::format_of(w.type).is_float())
    run_each("convert_to_bf16", convert_kernel(w.type), w.rows * padded_cols,
             ConvertArgs{w.data, w.row_bytes, w.rows, static_cast<int>(w.cols), out, padded_cols});
  else
    run_each("decode_planes", decode_kernel<uint16_t>(w.type), w.rows * w.cols / 32, decode_args(w, out, padded_cols));
  return out;
}

const uint16_t* CudaBackend::rows_as_bf16(const Rows& x, int64_t padded_cols) {
  auto* out = scratch<uint16_t>(&converted_, x.n * padded_cols);
  run_each("convert_to_bf16", convert_to_bf16<quant::Type::F32>, x.n * padded_cols,
           ConvertArgs{reinterpret_cast<const uint8_t*>(x.x), x.stride * 4, x.n, static_cast<int>(x.k), out, padded_cols});
  return out;
}

void CudaBackend::multiply_bf16(const Matrix& w, const uint16_t* x, int64_t n, float* out) {
  const int64_t k = padded(w.cols);
  const GemmArgs args{x, weights_as_bf16(w, k), nullptr, out, static_cast<int>(n), static_cast<int>(w.rows), static_cast<int>(k)};
  if (n > 64)
    run("gemm_bf16", gemm_bf16<128, 128, 64, 3, 2, 4>, dim3(blocks_for(w.rows, 128), blocks_for(n, 128)), 8 * kWarp,
        sizeof(GemmShared<128, 128, 64, 3>), args);
  else
    run("gemm_bf16", gemm_bf16<32, 32, 32, 3, 1, 2>, dim3(blocks_for(w.rows, 32), blocks_for(n, 32)), 2 * kWarp,
        sizeof(GemmShared<32, 32, 32, 3>), args);
}

void CudaBackend::product_bf16(const Matrix& w, const Rows& x, float* out) {
  if (observer_) show(w, x, dense(x.n, w.rows));
  multiply_bf16(w, rows_as_bf16(x, padded(w.cols)), x.n, out);
}

void CudaBackend::linear(const LinearArgs& args) {
  const Lock lock(device_.lock());
  for (const LinearArgs& part : by_form(args, args.w.cols, args.out_stride ? args.out_stride : args.w.rows)) linear_of_form(part);
}

void CudaBackend::linear_of_form(const LinearArgs& args) {
  const int64_t out_stride = args.out_stride ? args.out_stride : args.w.rows;
  const bool plain = !args.bias && args.activation == Activation::none && !args.add && out_stride == args.w.rows;
  float* out = plain ? args.out : scratch<float>(&products_, args.n * args.w.rows);
  Rows x{args.x, args.n, args.w.cols, args.w.cols, {}};
  if (args.compute_type == ComputeType::bf16) {
    product_bf16(args.w, x, out);
  } else if (args.compute_type == ComputeType::f32) {
    if (observer_) show(args.w, x, dense(x.n, args.w.rows));
    product_of_floats(args.w, x, dense(args.n, args.w.rows), out);
  } else {
    quantize_for(args.w, &x, &q8_x_);
    product_by_form(args.w, x, dense(args.n, args.w.rows), args.n_expanded, out);
  }
  if (plain) return;
  const Epilogue activation = args.activation == Activation::gelu_tanh  ? Epilogue::gelu_tanh
                              : args.activation == Activation::gelu_erf ? Epilogue::gelu_erf
                                                                        : Epilogue::none;
  run_each("finish", cuda::finish_rows, args.n * args.w.rows,
           FinishArgs{out, args.bias, args.n, static_cast<int>(args.w.rows), out_stride, activation, args.add, args.out});
}

void CudaBackend::linear_to_host(const LinearArgs& args) {
  const Lock lock(device_.lock());
  const int64_t out_stride = args.out_stride ? args.out_stride : args.w.rows;
  KIMI_DCHECK(!args.add && out_stride == args.w.rows);
  for (int64_t row = 0; row < args.n; row += kHostRows) {
    LinearArgs some = args;
    some.x = args.x + row * args.w.cols;
    some.n = std::min(kHostRows, args.n - row);
    some.n_expanded = std::max<int64_t>(0, std::min(args.n_expanded, args.n) - row);
    some.out = scratch<float>(&leaving_, some.n * args.w.rows);
    linear(some);
    device_.download(args.out + row * out_stride, some.out, static_cast<size_t>(some.n * args.w.rows) * sizeof(float));
  }
}

}  // namespace kimi::cuda
