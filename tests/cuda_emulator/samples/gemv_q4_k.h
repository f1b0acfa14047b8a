// y = W x for Q4_K weights as the file has them (blocks of 144 bytes are 16-byte aligned) and activations in int8.
//
// A warp owns kRows rows. Eight lanes share a block: lane part p takes bytes 16 p .. 16 p + 15 of its quants, which are 16
// elements of sub-block 2 (p / 2) in the low nibbles and 16 of the next sub-block in the high ones. So a warp takes four
// blocks at a time in loads of 16 bytes, and the sum of a row is one of 32 lanes in a fixed order.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

// Activations [n, k] in int8: value = scale * q, one scale per 32; half_sum: scale times the sum of each 16 q.
struct Q8Vector {
  const int8_t* q;        // [n, k]
  const float* scale;     // [n, k / 32]
  const float* half_sum;  // [n, k / 16]
};

struct GemvArgs {
  const uint8_t* w;  // [n_rows, row_bytes]
  int row_bytes, n_rows, k;
  Q8Vector x;
  float* out;  // [n, n_rows]
};

// Mistakes that tests plant: 1 a row behind the last is written; 2 lanes leave before the exchange; 3 the header is
// read 4 bytes too late; 4 two blocks write the same rows.
template <int kRows, int n, int kMistake = 0>
__global__ void __launch_bounds__(128) gemv_q4_k(GemvArgs args) {
  dependency_wait();
  const int block_of_grid = kMistake == 4 ? static_cast<int>(blockIdx.x) / 2 : static_cast<int>(blockIdx.x);
  const int row0 = (block_of_grid * static_cast<int>(blockDim.x / kWarp) + warp_id()) * kRows;
  if (kMistake != 1 && row0 >= args.n_rows) return;
  const int lane = lane_id(), part = lane % 8, g = part / 2, first = 64 * g + 16 * (part % 2);
  const int n_blocks = args.k / 256;
  if (kMistake == 2 && lane / 8 >= n_blocks) return;
  float sum[n][kRows] = {};
  for (int b = lane / 8; b < n_blocks; b += kWarp / 8) {
    uint4 low[n], high[n];
    float scale[n][2], half[n][2];
    KIMI_UNROLL
    for (int j = 0; j < n; ++j) {
      const int at = j * args.k + b * 256 + first;
      low[j] = *reinterpret_cast<const uint4*>(args.x.q + at);
      high[j] = *reinterpret_cast<const uint4*>(args.x.q + at + 32);
      scale[j][0] = args.x.scale[at / 32];
      scale[j][1] = args.x.scale[at / 32 + 1];
      half[j][0] = args.x.half_sum[at / 16];
      half[j][1] = args.x.half_sum[at / 16 + 2];
    }
    KIMI_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const int row = row0 + r < args.n_rows ? row0 + r : args.n_rows - 1;
      const uint8_t* block = args.w + static_cast<int64_t>(row) * args.row_bytes + b * 144;
      const uint4 header = load_weights(block + (kMistake == 3 ? 4 : 0));
      const uint4 q = load_weights(block + 16 + 16 * part);
      const float d = float_from_f16(static_cast<uint16_t>(header.x)),
                  d_min = float_from_f16(static_cast<uint16_t>(header.x >> 16));
      // Scales and minimums of sub-blocks 2 g and 2 g + 1, 6 bits each.
      const int shift = 16 * (g % 2);
      const uint32_t s0 = header.y >> shift, s1 = header.z >> shift, s2 = header.w >> shift;
      const uint32_t scales = g < 2 ? s0 & 0x3f3f : (s2 & 0x0f0f) | ((s0 >> 2) & 0x3030);
      const uint32_t mins = g < 2 ? s1 & 0x3f3f : ((s2 >> 4) & 0x0f0f) | ((s1 >> 2) & 0x3030);
      const float d0 = d * static_cast<float>(scales & 255), d1 = d * static_cast<float>(scales >> 8);
      const float m0 = d_min * static_cast<float>(mins & 255), m1 = d_min * static_cast<float>(mins >> 8);
      KIMI_UNROLL
      for (int j = 0; j < n; ++j) {
        int a = 0, c = 0;
        a = dot4(q.x & 0x0f0f0f0f, low[j].x, a);
        a = dot4(q.y & 0x0f0f0f0f, low[j].y, a);
        a = dot4(q.z & 0x0f0f0f0f, low[j].z, a);
        a = dot4(q.w & 0x0f0f0f0f, low[j].w, a);
        c = dot4((q.x >> 4) & 0x0f0f0f0f, high[j].x, c);
        c = dot4((q.y >> 4) & 0x0f0f0f0f, high[j].y, c);
        c = dot4((q.z >> 4) & 0x0f0f0f0f, high[j].z, c);
        c = dot4((q.w >> 4) & 0x0f0f0f0f, high[j].w, c);
        sum[j][r] = fused(d0 * scale[j][0], static_cast<float>(a), sum[j][r]);
        sum[j][r] = fused(d1 * scale[j][1], static_cast<float>(c), sum[j][r]);
        sum[j][r] = fused(-m0, half[j][0], sum[j][r]);
        sum[j][r] = fused(-m1, half[j][1], sum[j][r]);
      }
    }
  }
  KIMI_UNROLL
  for (int j = 0; j < n; ++j) KIMI_UNROLL
  for (int r = 0; r < kRows; ++r) {
    const float total = warp_sum(sum[j][r]);
    if (lane == 0 && (kMistake == 1 || row0 + r < args.n_rows)) args.out[j * args.n_rows + row0 + r] = total;
  }
}

}  // namespace kimi::cuda
