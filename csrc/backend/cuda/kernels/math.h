// Functions of one float that give the same bits in the emulator and on every device.
#pragma once
#include "backend/cuda/primitives.h"

namespace kimi::cuda {

// e^x, relative error below 2e-7 on [-87, 88]; smaller x give about 1e-38, larger ones stay at e^88. Range reduction
// x = n ln2 + r, then a Taylor polynomial of degree 7 on |r| <= ln2 / 2.
__device__ __forceinline__ float exponential(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float shifted = fused(x, 1.44269504088896341f, 12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const float n = shifted - 12582912.0f;
  float r = fused(n, -0.693145751953125f, x);
  r = fused(n, -1.42860682030941723e-6f, r);
  float p = 1.0f / 5040;
  p = fused(p, r, 1.0f / 720);
  p = fused(p, r, 1.0f / 120);
  p = fused(p, r, 1.0f / 24);
  p = fused(p, r, 1.0f / 6);
  p = fused(p, r, 0.5f);
  p = fused(p, r, 1.0f);
  p = fused(p, r, 1.0f);
  return p * float_from_bits((bits_of(shifted) - 0x4b400000u + 127u) << 23);
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + exponential(-x)); }
// 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
__device__ __forceinline__ float gelu_tanh(float x) {
  const float u = x * fused(0.044715f, x * x, 1.0f) * 0.7978845608028654f;
  return x / (1.0f + exponential(-2.0f * u));
}
__device__ __forceinline__ float gelu_erf(float x) { return 0.5f * x * (1.0f + error_function(x * 0.70710678118654752f)); }

}  // namespace kimi::cuda
