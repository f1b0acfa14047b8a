// The products of products.h for many rows of x, by int8 tensor cores: a block takes kGemmRows rows of a matrix and up to
// kGemmTokens rows of x. Weights are unpacked to bytes once for the block, whatever their format; the bytes of x are copied by
// cp.async.
//
// The sum over a group of elements with one scale is exact; groups are added in ascending order, in float. So the bits of an
// element depend on nothing else in the call, but they are other bits than those of products.h: the form of a row says which it
// gets.
#pragma once
#include "backend/cuda/kernels/gemm_bf16.h"
#include "backend/cuda/kernels/products.h"

namespace kimi::cuda {

constexpr int kGemmRows = 128, kGemmTokens = 64, kGemmThreads = 256;
constexpr int kStepGroups = 2, kStepBytes = 32 * kStepGroups;  // of a row at a time
constexpr int kGemmWarpsOfTokens = 2;                          // warps side by side; the others lie below each other

struct GemmInt8Shared {
  struct Stage {
    alignas(128) uint8_t w[kGemmRows * kStepBytes];
    alignas(128) uint8_t x[kGemmTokens * kStepBytes];
    float scale[kStepGroups][2][kGemmRows], min[kStepGroups][2][kGemmRows];
    float x_scale[kStepGroups][kGemmTokens], x_sum[kStepGroups][2][kGemmTokens];  // x_sum: of the values, for minima
  };
  Stage stages[2];
};

// Where a piece of 16 bytes of a row lies, such that load_matrices meets no bank twice.
__device__ __forceinline__ int piece_at(int row, int piece) { return 2 * swizzled<kStepBytes / 2>(row, piece); }

// n as a float, for magnitudes below 2^22: the exponent is put beside it and taken away again.
__device__ __forceinline__ float exact_float(int n) {
  return float_from_bits(static_cast<uint32_t>(n) + 0x4b400000u) - 12582912.0f;
}

// What a thread brings of every step: a group of a row of weights, a piece of a row of x, and the scale of a group of that.
// Weights and scales are under way in registers while the step before is multiplied.
template <quant::Type type>
struct GemmInput {
  static constexpr Layout kLayout = layout_of_type<type>();
  static constexpr int kHalves = kLayout.group == 16 ? 2 : 1, kPieces = kStepBytes / 16;
  static_assert(kStepGroups == 2 && kGemmThreads == kGemmRows * kStepGroups && kGemmThreads == kGemmTokens * kPieces);

  const ProductArgs& args;
  Planes planes;
  int thread, n_groups;
  int64_t w_group, x_row;
  Group group{};
  float x_scale = 0.0f, x_sum[2] = {};

  __device__ __forceinline__ GemmInput(const ProductArgs& product, const Tile& tile, int row0) : args(product) {
    thread = static_cast<int>(threadIdx.x);
    n_groups = args.cols / 32;
    const uint8_t* matrix = args.w + tile.matrix * args.stack_bytes;
    const PlaneOffsets at = plane_offsets(layout_of_type<type>(), args.rows, args.cols);
    planes = {matrix, matrix + at.high, matrix + at.scales, matrix + at.base};
    const int row = row0 + w_row();
    w_group = static_cast<int64_t>(row < args.rows ? row : args.rows - 1) * n_groups;
    x_row = x_row_of(args.map, tile, x_token());
  }
  __device__ __forceinline__ int w_row() const { return thread / kStepGroups; }
  __device__ __forceinline__ int part() const { return thread % kStepGroups; }
  __device__ __forceinline__ int x_token() const { return thread / kPieces; }
  __device__ __forceinline__ int x_piece() const { return thread % kPieces; }

  // Behind the last group there are zeros.
  __device__ __forceinline__ void load(int step) {
    const int g = step * kStepGroups + part(), x_g = step * kStepGroups + x_piece() % kStepGroups;
    const bool inside = g < n_groups;
    group = load_group<type>(planes, w_group + (inside ? g : 0));
    KIMI_UNROLL
    for (int i = 0; i < 8; ++i) {
      if constexpr (kLayout.offset != 0)  // byte by byte, of which none borrows from the next
        group.q[i] = ((group.q[i] | 0x80808080u) - kLayout.offset * 0x01010101u) ^ 0x80808080u;
      group.q[i] = inside ? group.q[i] : 0;
    }
    KIMI_UNROLL
    for (int half = 0; half < 2; ++half) {
      group.scale[half] = inside ? group.scale[half] : 0.0f;
      group.min[half] = inside ? group.min[half] : 0.0f;
    }
    const int64_t x_at = x_row * n_groups + (x_g < n_groups ? x_g : 0);
    const int2 sums = *reinterpret_cast<const int2*>(args.q8.half_sum + x_at * 2);
    x_scale = args.q8.scale[x_at];
    x_sum[0] = x_scale * static_cast<float>(kHalves == 2 ? sums.x : sums.x + sums.y);
    x_sum[1] = x_scale * static_cast<float>(sums.y);
  }
  __device__ __forceinline__ void copy_x(GemmInt8Shared::Stage& stage, int step) const {
    const int byte = step * kStepBytes + x_piece() * 16;
    const bool inside = byte < args.cols;
    copy_async(stage.x + piece_at(x_token(), x_piece()), args.q8.q + x_row * args.cols + (inside ? byte : 0), inside ? 16 : 0);
    copy_async_commit();
  }
  __device__ __forceinline__ void store(GemmInt8Shared::Stage& stage) const {
    *reinterpret_cast<uint4*>(stage.w + piece_at(w_row(), 2 * part())) = {group.q[0], group.q[1], group.q[2], group.q[3]};
    *reinterpret_cast<uint4*>(stage.w + piece_at(w_row(), 2 * part() + 1)) = {group.q[4], group.q[5], group.q[6], group.q[7]};
    KIMI_UNROLL
    for (int half = 0; half < kHalves; ++half) {
      stage.scale[part()][half][w_row()] = group.scale[half];
      if constexpr (kLayout.has_min) stage.min[part()][half][w_row()] = group.min[half];
    }
    if (x_piece() >= kStepGroups) return;
    stage.x_scale[x_piece()][x_token()] = x_scale;
    KIMI_UNROLL
    for (int half = 0; half < kHalves; ++half)
      if constexpr (kLayout.has_min) stage.x_sum[x_piece()][half][x_token()] = x_sum[half];
  }
};

// The sums of a warp: kTilesM x kTilesN fragments of 16 rows of the matrix and 8 of x.
struct GemmSums {
  static constexpr int kWarpRows = kGemmRows / (kGemmThreads / kWarp / kGemmWarpsOfTokens);
  static constexpr int kWarpTokens = kGemmTokens / kGemmWarpsOfTokens, kTilesM = kWarpRows / 16, kTilesN = kWarpTokens / 8;
  float sum[kTilesM][kTilesN][4] = {};

  static __device__ __forceinline__ int warp_row() { return warp_id() / kGemmWarpsOfTokens * kWarpRows; }
  static __device__ __forceinline__ int warp_token() { return warp_id() % kGemmWarpsOfTokens * kWarpTokens; }

  // Half a group, or a whole one where it has one scale: a and b hold group g of the stage.
  template <quant::Type type>
  __device__ __forceinline__ void add(const GemmInt8Shared::Stage& stage, int g, int half, const uint32_t (&a)[kTilesM][4],
                                      const uint32_t (&b)[kTilesN / 2][4]) {
    constexpr bool kWhole = GemmInput<type>::kHalves == 1, kHasMin = GemmInput<type>::kLayout.has_min;
    const int lane = lane_id(), first_row = warp_row() + lane / 4, first_token = warp_token() + lane % 4 * 2;
    float scale[kTilesM][2], min[kTilesM][2];
    KIMI_UNROLL
    for (int i = 0; i < kTilesM; ++i) KIMI_UNROLL
    for (int h = 0; h < 2; ++h) {
      scale[i][h] = stage.scale[g][half][first_row + i * 16 + 8 * h];
      if constexpr (kHasMin) min[i][h] = -stage.min[g][half][first_row + i * 16 + 8 * h];
    }
    KIMI_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      const int token = first_token + j * 8;
      const float x_scale[2] = {stage.x_scale[g][token], stage.x_scale[g][token + 1]};
      KIMI_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        int dot[4] = {};
        const bool first = kWhole || half == 0, second = kWhole || half == 1;
        const uint32_t of_half[4] = {first ? a[i][0] : 0, first ? a[i][1] : 0, second ? a[i][2] : 0, second ? a[i][3] : 0};
        mma_s8(dot, of_half, b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        KIMI_UNROLL
        for (int r = 0; r < 4; ++r) {
          sum[i][j][r] = fused(exact_float(dot[r]), scale[i][r / 2] * x_scale[r % 2], sum[i][j][r]);
          if constexpr (kHasMin) sum[i][j][r] = fused(min[i][r / 2], stage.x_sum[g][half][token + r % 2], sum[i][j][r]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(const ProductArgs& args, const Tile& tile, int row0) const {
    const int lane = lane_id();
    KIMI_UNROLL
    for (int i = 0; i < kTilesM; ++i) KIMI_UNROLL
    for (int j = 0; j < kTilesN; ++j) KIMI_UNROLL
    for (int r = 0; r < 4; ++r) {
      const int row = row0 + warp_row() + i * 16 + lane / 4 + r / 2 * 8, token = warp_token() + j * 8 + lane % 4 * 2 + r % 2;
      if (row < args.rows && token < tile.count)
        args.out[(tile.first + token) * args.map.out_step + tile.matrix * args.map.out_matrix + row] = sum[i][j][r];
    }
  }
};

template <quant::Type type>
__global__ void __launch_bounds__(kGemmThreads, 2) gemm_int8(ProductArgs args) {
  using Input = GemmInput<type>;
  auto& shared = shared_storage<GemmInt8Shared>();
  dependency_wait();
  const Tile tile = tile_of_block<kGemmTokens>(args.map);
  if (tile.count == 0) return;
  const int row0 = static_cast<int>(blockIdx.x) * kGemmRows, lane = lane_id();
  Input input(args, tile, row0);
  GemmSums sums;
  // Of the first group and tile. A group further is two pieces further, a flip of one bit; 16 rows further repeat the swizzle.
  const int a_at = piece_at(GemmSums::warp_row() + lane % 16, lane / 16),
            b_at = piece_at(GemmSums::warp_token() + lane % 8 + lane / 16 * 8, lane / 8 % 2);
  const int n_steps = (input.n_groups + kStepGroups - 1) / kStepGroups;
  input.load(0);
  input.copy_x(shared.stages[0], 0);
  for (int step = 0; step < n_steps; ++step) {
    GemmInt8Shared::Stage& stage = shared.stages[step % 2];
    input.store(stage);
    copy_async_wait<0>();
    block_sync();  // the stage is whole, and all have read the other one
    if (step + 1 < n_steps) {
      input.load(step + 1);
      input.copy_x(shared.stages[(step + 1) % 2], step + 1);
    }
    KIMI_ROLLED
    for (int g = 0; g < kStepGroups; ++g) {
      uint32_t a[GemmSums::kTilesM][4], b[GemmSums::kTilesN / 2][4];
      KIMI_UNROLL
      for (int i = 0; i < GemmSums::kTilesM; ++i) load_matrices<false>(a[i], stage.w + (a_at ^ (32 * g)) + i * 16 * kStepBytes);
      KIMI_UNROLL
      for (int j = 0; j < GemmSums::kTilesN / 2; ++j)
        load_matrices<false>(b[j], stage.x + (b_at ^ (32 * g)) + j * 16 * kStepBytes);
      KIMI_UNROLL
      for (int half = 0; half < Input::kHalves; ++half) sums.template add<type>(stage, g, half, a, b);
    }
  }
  // The tile is found again: it was in nobody's register meanwhile.
  sums.store(args, tile_of_block<kGemmTokens>(args.map), row0);
}

}  // namespace kimi::cuda
