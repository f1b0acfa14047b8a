// out[j, r] = dot(row r of a matrix, row j of x), for one matrix, a stack of them, or experts with the tokens that visit each.
//
// A warp owns a row of the matrix and up to kN rows of x. The sum of an element is that of 32 lanes, each over every 32nd group
// (of 32 elements) or element, put together by a butterfly: it depends on nothing else in the call.
#pragma once
#include "backend/cuda/kernels/groups.h"

namespace kimi::cuda {

// Activations in int8: value = scale * q.
struct Q8Rows {
  const int8_t* q;          // [n, k]
  const float* scale;       // [n, k / 32]
  const int32_t* half_sum;  // [n, k / 16], of q
};

// Rows of x that one matrix of a stack is multiplied with.
struct Tile {
  int matrix, first, count;  // count 0: none
};

// Which rows of x meet which matrix, and where results go. Without `tiles`, every matrix meets n rows.
struct RowMap {
  const Tile* tiles;  // one for each blockIdx.y, or nullptr
  const int* x_rows;  // row of x for each place, or nullptr: place * x_step + matrix * x_matrix
  int n, x_step, x_matrix;
  int64_t out_step, out_matrix;  // floats from one place to the next, from one matrix to the next
};

struct ProductArgs {
  const uint8_t* w;     // planes, or rows of floats
  int64_t stack_bytes;  // from one matrix to the next
  int64_t row_bytes;    // rows of floats
  int rows, cols;       // of one matrix
  Q8Rows q8;
  const float* x;    // beside rows of floats
  int64_t x_stride;  // floats from one row of x to the next
  RowMap map;
  float* out;
};

constexpr int kProductWarps = 4;

// The tile of this block. kN: most rows of a tile.
template <int kN>
__device__ __forceinline__ Tile tile_of_block(const RowMap& map) {
  const int index = static_cast<int>(blockIdx.y);
  if (map.tiles) return map.tiles[index];
  const int per_matrix = (map.n + kN - 1) / kN, first = index % per_matrix * kN;
  return {index / per_matrix, first, map.n - first < kN ? map.n - first : kN};
}
__device__ __forceinline__ int64_t x_row_of(const RowMap& map, const Tile& tile, int j) {
  const int place = tile.first + (j < tile.count ? j : tile.count - 1);
  return map.x_rows ? map.x_rows[place]
                    : static_cast<int64_t>(place) * map.x_step + static_cast<int64_t>(tile.matrix) * map.x_matrix;
}

template <int kN>
__device__ __forceinline__ void store_sums(const ProductArgs& args, const Tile& tile, int row, const float (&sum)[kN]) {
  KIMI_UNROLL
  for (int j = 0; j < kN; ++j) {
    const float total = warp_sum(sum[j]);
    if (lane_id() == 0 && j < tile.count && row < args.rows)
      args.out[(tile.first + j) * args.map.out_step + tile.matrix * args.map.out_matrix + row] = total;
  }
}

template <quant::Type type, int kN>
__global__ void __launch_bounds__(kProductWarps* kWarp, 4) product_int8(ProductArgs args) {
  constexpr Layout layout = layout_of_type<type>();
  dependency_wait();
  const Tile tile = tile_of_block<kN>(args.map);
  if (tile.count == 0) return;
  const int row = static_cast<int>(blockIdx.x) * kProductWarps + warp_id(), n_groups = args.cols / 32;
  const int64_t row_groups = static_cast<int64_t>(row < args.rows ? row : args.rows - 1) * n_groups;
  const uint8_t* matrix = args.w + tile.matrix * args.stack_bytes;
  const PlaneOffsets at = plane_offsets(layout, args.rows, args.cols);
  const Planes planes{matrix, matrix + at.high, matrix + at.scales, matrix + at.base};
  int64_t x_row[kN];
  KIMI_UNROLL
  for (int j = 0; j < kN; ++j) x_row[j] = x_row_of(args.map, tile, j);
  float sum[kN] = {};
  for (int g = lane_id(); g < n_groups; g += kWarp) {
    const Group group = load_group<type>(planes, row_groups + g);
    KIMI_UNROLL
    for (int j = 0; j < kN; ++j) {
      const int64_t x_group = x_row[j] * n_groups + g;
      const uint4 a = *reinterpret_cast<const uint4*>(args.q8.q + x_group * 32),
                  b = *reinterpret_cast<const uint4*>(args.q8.q + x_group * 32 + 16);
      const float x_scale = args.q8.scale[x_group];
      const int2 x_sum = *reinterpret_cast<const int2*>(args.q8.half_sum + x_group * 2);
      int first = 0, second = 0;
      first = dot4(group.q[0], a.x, first);
      first = dot4(group.q[1], a.y, first);
      first = dot4(group.q[2], a.z, first);
      first = dot4(group.q[3], a.w, first);
      second = dot4(group.q[4], b.x, second);
      second = dot4(group.q[5], b.y, second);
      second = dot4(group.q[6], b.z, second);
      second = dot4(group.q[7], b.w, second);
      if constexpr (layout.offset != 0) {
        first -= layout.offset * x_sum.x;
        second -= layout.offset * x_sum.y;
      }
      if constexpr (layout.group == 32) {
        sum[j] = fused(static_cast<float>(first + second), group.scale[0] * x_scale, sum[j]);
        if constexpr (layout.has_min) sum[j] = fused(-group.min[0], x_scale * static_cast<float>(x_sum.x + x_sum.y), sum[j]);
      } else {
        sum[j] = fused(static_cast<float>(first), group.scale[0] * x_scale, sum[j]);
        if constexpr (layout.has_min) sum[j] = fused(-group.min[0], x_scale * static_cast<float>(x_sum.x), sum[j]);
        sum[j] = fused(static_cast<float>(second), group.scale[1] * x_scale, sum[j]);
        if constexpr (layout.has_min) sum[j] = fused(-group.min[1], x_scale * static_cast<float>(x_sum.y), sum[j]);
      }
    }
  }
  store_sums<kN>(args, tile, row, sum);
}

// An element of a row of floats.
template <quant::Type type>
__device__ __forceinline__ float load_float(const uint8_t* row, int64_t i) {
  if constexpr (type == quant::Type::F32) return *reinterpret_cast<const float*>(row + 4 * i);
  const auto bits = *reinterpret_cast<const uint16_t*>(row + 2 * i);
  return type == quant::Type::F16 ? float_from_f16(bits) : float_from_bf16(bits);
}

template <quant::Type type, int kN>
__global__ void __launch_bounds__(kProductWarps* kWarp, 4) product_float(ProductArgs args) {
  dependency_wait();
  const Tile tile = tile_of_block<kN>(args.map);
  if (tile.count == 0) return;
  const int row = static_cast<int>(blockIdx.x) * kProductWarps + warp_id();
  const uint8_t* w =
      args.w + tile.matrix * args.stack_bytes + static_cast<int64_t>(row < args.rows ? row : args.rows - 1) * args.row_bytes;
  const float* x[kN];
  KIMI_UNROLL
  for (int j = 0; j < kN; ++j) x[j] = args.x + x_row_of(args.map, tile, j) * args.x_stride;
  float sum[kN] = {};
  for (int i = lane_id(); i < args.cols; i += kWarp) {
    const float value = load_float<type>(w, i);
    KIMI_UNROLL
    for (int j = 0; j < kN; ++j) sum[j] = fused(value, x[j][i], sum[j]);
  }
  store_sums<kN>(args, tile, row, sum);
}

// ---- the numbers of a matrix, exactly as the file's decoder has them ---------------------------------------------------------
struct DecodeArgs {
  const uint8_t* w;
  int64_t stack_bytes;
  int rows, cols, count;
  void* out;           // [count * rows, out_stride] floats or bf16
  int64_t out_stride;  // what lies behind a row's cols numbers is written with zeros
};

__device__ __forceinline__ void store_number(float* out, float value) { *out = value; }
__device__ __forceinline__ void store_number(uint16_t* out, float value) { *out = static_cast<uint16_t>(pack_bf16(value, 0.0f)); }

// A thread for each group of 32 elements.
template <quant::Type type, typename Number>
__global__ void __launch_bounds__(128) decode_planes(DecodeArgs args) {
  constexpr Layout layout = layout_of_type<type>();
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, n_groups = args.cols / 32,
                per_matrix = args.rows * n_groups;
  if (index >= per_matrix * args.count) return;
  const uint8_t* matrix = args.w + index / per_matrix * args.stack_bytes;
  const PlaneOffsets at = plane_offsets(layout, args.rows, args.cols);
  const Group group = load_group<type>({matrix, matrix + at.high, matrix + at.scales, matrix + at.base}, index % per_matrix);
  auto* out = static_cast<Number*>(args.out) + index / n_groups * args.out_stride + index % n_groups * 32;
  KIMI_UNROLL
  for (int i = 0; i < 32; ++i) {
    const uint32_t byte = group.q[i / 4] >> (8 * (i % 4)) & 255;
    const int q = static_cast<int8_t>(byte) - layout.offset;
    const float product = group.scale[i / 16] * static_cast<float>(q);
    store_number(out + i, layout.has_min ? product - group.min[i / 16] : product);
  }
  const int64_t end = index % n_groups * 32 + 32;
  for (int64_t i = end; end == args.cols && i < args.out_stride; ++i) store_number(out + 32 + i - end, 0.0f);
}

struct ConvertArgs {
  const uint8_t* from;
  int64_t row_bytes;
  int64_t n;  // rows
  int cols;
  uint16_t* out;  // bf16 [n, out_stride], zeros behind cols
  int64_t out_stride;
};
// Rows of floats of any kind as bf16; a thread for each number.
template <quant::Type type>
__global__ void __launch_bounds__(128) convert_to_bf16(ConvertArgs args) {
  dependency_wait();
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= args.n * args.out_stride) return;
  const int64_t row = index / args.out_stride, col = index % args.out_stride;
  args.out[index] =
      col < args.cols ? static_cast<uint16_t>(pack_bf16(load_float<type>(args.from + row * args.row_bytes, col), 0.0f)) : 0;
}

}  // namespace kimi::cuda
