// Operations on single rows and single numbers: norms, activations, int8 rounding, copies. No products.
#pragma once
#include "backend/cuda/kernels/math.h"

namespace kimi::cuda {

constexpr int kRowThreads = 128;

struct NormArgs {
  const float *x, *weight, *bias;  // [n, dim], [dim], [dim] or nullptr
  float eps;
  int dim;
  float* out;
};

struct SumShared {
  float partial[kRowThreads / kWarp];
};
// The sum over a block of kRowThreads: within warps by a butterfly, then the warps in order.
__device__ __forceinline__ float block_sum(SumShared& shared, float value) {
  value = warp_sum(value);
  block_sync();
  if (lane_id() == 0) shared.partial[warp_id()] = value;
  block_sync();
  float total = 0.0f;
  KIMI_UNROLL
  for (int w = 0; w < kRowThreads / kWarp; ++w) total += shared.partial[w];
  return total;
}

// A block for each row. out may be x.
static __global__ void __launch_bounds__(kRowThreads) rms_norm(NormArgs args) {
  auto& shared = shared_storage<SumShared>();
  dependency_wait();
  const float* x = args.x + static_cast<int64_t>(blockIdx.x) * args.dim;
  float* out = args.out + static_cast<int64_t>(blockIdx.x) * args.dim;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kRowThreads) sum = fused(x[i], x[i], sum);
  const float scale = 1.0f / square_root(block_sum(shared, sum) / static_cast<float>(args.dim) + args.eps);
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kRowThreads) out[i] = x[i] * scale * args.weight[i];
}

static __global__ void __launch_bounds__(kRowThreads) layer_norm(NormArgs args) {
  auto& shared = shared_storage<SumShared>();
  dependency_wait();
  const float* x = args.x + static_cast<int64_t>(blockIdx.x) * args.dim;
  float* out = args.out + static_cast<int64_t>(blockIdx.x) * args.dim;
  float sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kRowThreads) sum += x[i];
  const float mean = block_sum(shared, sum) / static_cast<float>(args.dim);
  sum = 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kRowThreads) sum = fused(x[i] - mean, x[i] - mean, sum);
  const float scale = 1.0f / square_root(block_sum(shared, sum) / static_cast<float>(args.dim) + args.eps);
  for (int i = static_cast<int>(threadIdx.x); i < args.dim; i += kRowThreads)
    out[i] = (x[i] - mean) * scale * args.weight[i] + args.bias[i];
}

// out[i] (+)= activation(x[i] + bias[i % cols]); out has rows of its own stride. A thread for each number.
enum class Epilogue { none, gelu_tanh, gelu_erf };
struct FinishArgs {
  const float *x, *bias;  // [n, cols]; [cols] or nullptr
  int64_t n;
  int cols;
  int64_t out_stride;
  Epilogue activation;
  bool add;
  float* out;
};
static __global__ void __launch_bounds__(kRowThreads) finish_rows(FinishArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (index >= args.n * args.cols) return;
  const int64_t row = index / args.cols;
  const int col = static_cast<int>(index % args.cols);
  float value = args.x[index] + (args.bias ? args.bias[col] : 0.0f);
  if (args.activation == Epilogue::gelu_tanh) value = gelu_tanh(value);
  if (args.activation == Epilogue::gelu_erf) value = gelu_erf(value);
  float* out = args.out + row * args.out_stride + col;
  *out = args.add ? *out + value : value;
}

// up[i] = silu(gate[i]) * up[i]
static __global__ void __launch_bounds__(kRowThreads) silu_multiply(const float* gate, float* up, int64_t n) {
  dependency_wait();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (i < n) up[i] = silu(gate[i]) * up[i];
}

struct CopyRowsArgs {
  const float* x;
  const int* rows;  // row of x for each row of out; nullptr: the same
  int64_t n;
  int dim;
  float* out;
};
static __global__ void __launch_bounds__(kRowThreads) copy_rows(CopyRowsArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (index >= args.n * args.dim) return;
  const int64_t row = index / args.dim, from = args.rows ? args.rows[row] : row;
  args.out[index] = args.x[from * args.dim + index % args.dim];
}

// ---- rounding to int8 --------------------------------------------------------------------------------------------------------
//   q = clamp(round_to_nearest_even(x * (127 / amax)), -127, 127), scale = amax / 127
// A NaN or an infinity among 32 elements makes their scale NaN or infinite and its own q 0: the result shows it.
constexpr int32_t kRoundBits = 0x4b400000;  // 1.5 * 2^23, which leaves the integer in the low bits of a sum
__device__ __forceinline__ int round_to_int8(float x, float inverse) {
  const float v = x * inverse;
  int integer = static_cast<int>(bits_of(v + float_from_bits(kRoundBits))) - kRoundBits;
  integer = integer > 127 ? 127 : integer;
  integer = integer < -127 ? -127 : integer;
  return (bits_of(v) & 0x7fffffffu) <= 0x7f800000u ? integer : 0;
}
__device__ __forceinline__ float inverse_of_largest(uint32_t largest_bits) {
  return largest_bits != 0 ? 127.0f / float_from_bits(largest_bits) : 0.0f;
}

struct QuantizeArgs {
  const float* x;
  int64_t x_stride;  // floats from one row to the next
  int64_t n;
  int k;  // a multiple of 32
  int8_t* q;
  float* scale;
  int32_t* half_sum;
};
// A thread for each half of a block of 32 elements; pairs of lanes share a scale.
static __global__ void __launch_bounds__(kRowThreads) quantize_rows(QuantizeArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x, halves = args.k / 16;
  const bool inside = index < args.n * halves;
  const int64_t at = inside ? index : 0;
  const float* x = args.x + at / halves * args.x_stride + at % halves * 16;
  uint32_t largest = 0;  // magnitudes compare like their bits, NaN above infinity
  KIMI_UNROLL
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = bits_of(x[i]) & 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  const uint32_t other = shuffle_xor(largest, 1);
  largest = other > largest ? other : largest;
  const float inverse = inverse_of_largest(largest);
  uint32_t words[4];
  int sum = 0;
  KIMI_UNROLL
  for (int w = 0; w < 4; ++w) {
    words[w] = 0;
    KIMI_UNROLL
    for (int i = 0; i < 4; ++i) {
      const int q = round_to_int8(x[4 * w + i], inverse);
      sum += q;
      words[w] |= (static_cast<uint32_t>(q) & 255u) << (8 * i);
    }
  }
  if (!inside) return;
  *reinterpret_cast<uint4*>(args.q + index * 16) = {words[0], words[1], words[2], words[3]};
  args.half_sum[index] = sum;
  if (index % 2 == 0) args.scale[index / 2] = float_from_bits(largest) / 127.0f;
}

// ---- pictures ----------------------------------------------------------------------------------------------------------------
struct PatchesArgs {
  const uint8_t* pixels;  // [height, width, 3]
  int height, width, patch;
  float mean[3], std[3];
  float* out;  // [height / patch * width / patch, (channel, y, x)]
};
static __global__ void __launch_bounds__(kRowThreads) cut_patches(PatchesArgs args) {
  dependency_wait();
  const int p = args.patch, grid_w = args.width / p, floats = 3 * p * p;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(args.height / p) * grid_w * floats) return;
  const int64_t patch = index / floats;
  const int at = static_cast<int>(index % floats), c = at / (p * p), y = at / p % p, x = at % p;
  const int64_t row = patch / grid_w * p + y, column = patch % grid_w * p + x;
  const float value = static_cast<float>(args.pixels[(row * args.width + column) * 3 + c]) / 255.0f;
  const float mean = c == 0 ? args.mean[0] : c == 1 ? args.mean[1] : args.mean[2];
  const float std = c == 0 ? args.std[0] : c == 1 ? args.std[1] : args.std[2];
  args.out[index] = (value - mean) / std;
}

struct MergeRowsArgs {
  const float* x;
  int grid_h, grid_w, merge, dim;
  float* out;
};
static __global__ void __launch_bounds__(kRowThreads) merge_patches(MergeRowsArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (index >= static_cast<int64_t>(args.grid_h) * args.grid_w * args.dim) return;
  const int64_t patch = index / args.dim, row = patch / args.grid_w, column = patch % args.grid_w, m = args.merge;
  const int64_t block = row / m * (args.grid_w / m) + column / m, part = row % m * m + column % m;
  args.out[(block * m * m + part) * args.dim + index % args.dim] = args.x[index];
}

}  // namespace kimi::cuda
