// One warp through every primitive, so that their three meanings can be compared: the emulator's words, the compiler's PTX
// and, where there is one, the device. Everything but exp2_fast and
// error_function has to agree bit for bit.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

constexpr int kProbeIn = 16, kProbeOut = 36;

struct ProbeShared {
  alignas(128) uint32_t rows[32][4];  // for load_matrices: lane i brings row i
  alignas(128) uint32_t copied[32][4];
};

__global__ void __launch_bounds__(kWarp) probe(const uint32_t* in, uint32_t* out) {
  auto& shared = shared_storage<ProbeShared>();
  const int lane = lane_id();
  const uint32_t* mine = in + lane * kProbeIn;
  uint32_t* to = out + lane * kProbeOut;
  to[0] = shuffle_xor(mine[0], 5);
  to[1] = shuffle(mine[0], static_cast<int>(mine[1] % 32));
  to[2] = ballot((mine[0] & 1) != 0);
  to[3] = bits_of(warp_sum(static_cast<float>(mine[0] % 1000)));
  to[4] = bits_of(warp_max<8>(static_cast<float>(mine[0] % 1000)));
  to[5] = static_cast<uint32_t>(dot4(mine[0], mine[1], static_cast<int>(mine[2])));
  to[6] = pack_bf16(float_from_bits(mine[3]), float_from_bits(mine[4]));
  to[7] = bits_of(float_from_f16(static_cast<uint16_t>(mine[5])));
  to[8] = bits_of(fused(float_from_bits(mine[3]), float_from_bits(mine[4]), 1.0f));
  const uint4 weights = load_weights(mine + 8);
  to[9] = weights.x ^ weights.y ^ weights.z ^ weights.w;
  for (int i = 0; i < 4; ++i) shared.rows[lane][i] = mine[8 + i];
  copy_async(shared.copied[lane], mine + 4, lane % 3 == 0 ? 16 : lane % 3 == 1 ? 8 : 0);
  copy_async_commit();
  copy_async_wait<0>();
  warp_sync();
  uint32_t m[4], t[4];
  load_matrices<false>(m, shared.rows[lane]);
  load_matrices<true>(t, shared.rows[lane]);
  for (int i = 0; i < 4; ++i) {
    to[10 + i] = m[i];
    to[14 + i] = t[i];
    to[18 + i] = shared.copied[(lane + 1) % 32][i];
  }
  int s[4] = {1, -2, 3, -4};
  mma_s8(s, m, t[0], t[1]);
  // Small whole numbers as bf16, whose sums are exact whatever the order.
  uint32_t a[4];
  for (int i = 0; i < 4; ++i) a[i] = pack_bf16(static_cast<float>(m[i] % 16), static_cast<float>((m[i] >> 8) % 16) - 8.0f);
  float f[4] = {0.5f, -1.0f, 2.0f, 0.0f};
  mma_bf16(f, a, pack_bf16(static_cast<float>(t[0] % 8), -3.0f),
           pack_bf16(static_cast<float>(t[1] % 8), static_cast<float>(lane)));
  for (int i = 0; i < 4; ++i) {
    to[22 + i] = static_cast<uint32_t>(s[i]);
    to[26 + i] = bits_of(f[i]);
  }
  to[30] = bits_of(exp2_fast(static_cast<float>(static_cast<int>(mine[0] % 64) - 32) * 0.25f));
  to[31] = f16_from_float(float_from_bits(mine[3]));
  to[32] = bits_of(square_root(static_cast<float>(mine[6] >> 4)));
  to[33] = choose_bytes(mine[0], mine[1], mine[2]);
  to[34] = bits_of(static_cast<float>(static_cast<int>(mine[6])) / static_cast<float>(static_cast<int>(mine[7] | 1)));
  to[35] = bits_of(error_function(float_from_bits(mine[3])));
}

}  // namespace kimi::cuda
