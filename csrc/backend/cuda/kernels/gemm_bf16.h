// out [m, n] = x [m, k] w [n, k]^T (+ bias) for bf16 with sums in float: tensor cores fed by ldmatrix from a ring of
// shared-memory stages that cp.async fills. k is a multiple of 8; m and n are anything.
//
// Rows of a tile are kBK numbers, cut into pieces of 16 bytes; piece c of row r lies where piece c ^ swizzle(r) would, so
// that the eight rows of an 8 x 8 matrix come from eight different groups of banks.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

struct GemmArgs {
  const uint16_t* x;  // bf16 [m, k]
  const uint16_t* w;  // bf16 [n, k]
  const float* bias;  // [n], or nullptr
  float* out;         // [m, n]
  int m, n, k;
};

template <int kBM, int kBN, int kBK, int kStages>
struct GemmShared {
  alignas(128) uint16_t x[kStages][kBM * kBK];
  alignas(128) uint16_t w[kStages][kBN * kBK];
};

template <int kBK>
__device__ __forceinline__ int swizzled(int row, int piece) {
  static_assert(kBK == 32 || kBK == 64);
  return row * kBK + ((kBK == 64 ? piece ^ (row % 8) : piece ^ (row / 2 % 4)) * 8);
}

// Mistakes that tests plant: 1 no barrier before a stage is read; 2 no barrier before a stage is filled again; 3 one
// copy too many is left under way; 4 rows behind the last are not replaced by zeros but read; 5 no swizzle (correct, slow);
// 6 a barrier that half of the warps skip.
template <int kBM, int kBN, int kBK, int kStages, int kWarpsM, int kWarpsN, int kMistake = 0>
__global__ void __launch_bounds__(kWarpsM* kWarpsN* kWarp) gemm_bf16(GemmArgs args) {
  constexpr int kThreads = kWarpsM * kWarpsN * kWarp, kPieces = kBK / 8;
  constexpr int kTilesM = kBM / kWarpsM / 16, kTilesN = kBN / kWarpsN / 8;
  static_assert(kTilesN % 2 == 0);
  auto& shared = shared_storage<GemmShared<kBM, kBN, kBK, kStages>>();
  const int row0 = static_cast<int>(blockIdx.y) * kBM, col0 = static_cast<int>(blockIdx.x) * kBN;
  const int warp_row = warp_id() / kWarpsN * (kBM / kWarpsM), warp_col = warp_id() % kWarpsN * (kBN / kWarpsN), lane = lane_id();
  const int n_steps = (args.k + kBK - 1) / kBK;
  dependency_wait();

  const auto place = [](int row, int piece) { return kMistake == 5 ? row * kBK + piece * 8 : swizzled<kBK>(row, piece); };
  const auto fill = [&](int step) {
    const int stage = step % kStages;
    for (int i = static_cast<int>(threadIdx.x); i < (kBM + kBN) * kPieces; i += kThreads) {
      const bool of_x = i < kBM * kPieces;
      const int j = of_x ? i : i - kBM * kPieces, row = j / kPieces, piece = j % kPieces, k = step * kBK + piece * 8;
      const int at = (of_x ? row0 : col0) + row;
      const bool inside = (kMistake == 4 || at < (of_x ? args.m : args.n)) && k < args.k;
      const uint16_t* from = (of_x ? args.x : args.w) + (inside ? static_cast<int64_t>(at) * args.k + k : 0);
      copy_async((of_x ? shared.x[stage] : shared.w[stage]) + place(row, piece), from, inside ? 16 : 0);
    }
  };

  float sum[kTilesM][kTilesN][4] = {};
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < n_steps) fill(step);
    copy_async_commit();
  }
  for (int step = 0; step < n_steps; ++step) {
    copy_async_wait<kMistake == 3 ? kStages - 1 : kStages - 2>();
    // What all threads copied is here, and all have read the stage that is filled next.
    if (kMistake != 1 && kMistake != 2 && !(kMistake == 6 && warp_id() % 2)) block_sync();
    if (kMistake == 2 && step == 0) block_sync();
    const uint16_t *x = shared.x[step % kStages], *w = shared.w[step % kStages];
    KIMI_UNROLL
    for (int kk = 0; kk < kBK / 16; ++kk) {
      uint32_t a[kTilesM][4], b[kTilesN / 2][4];
      KIMI_UNROLL
      for (int i = 0; i < kTilesM; ++i) load_matrices<false>(a[i], x + place(warp_row + i * 16 + lane % 16, kk * 2 + lane / 16));
      KIMI_UNROLL
      for (int j = 0; j < kTilesN / 2; ++j)
        load_matrices<false>(b[j], w + place(warp_col + j * 16 + lane % 8 + lane / 16 * 8, kk * 2 + lane / 8 % 2));
      KIMI_UNROLL
      for (int i = 0; i < kTilesM; ++i) KIMI_UNROLL
      for (int j = 0; j < kTilesN; ++j) mma_bf16(sum[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
    if (step + kStages - 1 < n_steps) fill(step + kStages - 1);
    copy_async_commit();
  }
  copy_async_wait<0>();

  KIMI_UNROLL
  for (int i = 0; i < kTilesM; ++i) KIMI_UNROLL
  for (int j = 0; j < kTilesN; ++j) KIMI_UNROLL
  for (int r = 0; r < 4; ++r) {
    const int row = row0 + warp_row + i * 16 + lane / 4 + r / 2 * 8, col = col0 + warp_col + j * 8 + lane % 4 * 2 + r % 2;
    if (row < args.m && col < args.n)
      args.out[static_cast<int64_t>(row) * args.n + col] = sum[i][j][r] + (args.bias ? args.bias[col] : 0.0f);
  }
}

}  // namespace kimi::cuda
