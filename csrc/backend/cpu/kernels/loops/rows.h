// Functions of single rows: norms, activations, rotations, conversions.
#pragma once
#include <math.h>

#include "backend/cpu/kernels/loops/gemm.h"

namespace kimi::cpu {
namespace {

// sum of f(x) over the row, in one fixed order
template <int W, typename Map>
KIMI_INLINE float reduce(const float* x, int64_t n, const Map& map) {
  using F = typename Vec<W>::F;
  F acc0 = {}, acc1 = {};
  int64_t i = 0;
  for (; i + 2 * W <= n; i += 2 * W) {
    acc0 += map(load<W>(x + i));
    acc1 += map(load<W>(x + i + W));
  }
  for (; i + W <= n; i += W) acc0 += map(load<W>(x + i));
  float total = sum<W>(acc0 + acc1);
  for (; i < n; ++i) {
    F one = {};
    one[0] = x[i];
    total += map(one)[0];
  }
  return total;
}

template <int W>
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  using F = typename Vec<W>::F;
  const float mean_square = reduce<W>(x, n, [](F v) { return v * v; }) / static_cast<float>(n);
  const float scale = 1.0f / __builtin_sqrtf(mean_square + eps);
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(out + i, load<W>(x + i) * scale * load<W>(weight + i));
  for (; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

template <int W>
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n, float* out) {
  using F = typename Vec<W>::F;
  const float mean = reduce<W>(x, n, [](F v) { return v; }) / static_cast<float>(n);
  const float variance = [&] {
    F acc = {};
    int64_t i = 0;
    for (; i + W <= n; i += W) {
      const F d = load<W>(x + i) - mean;
      acc += d * d;
    }
    float total = sum<W>(acc);
    for (; i < n; ++i) total += (x[i] - mean) * (x[i] - mean);
    return total / static_cast<float>(n);
  }();
  const float scale = 1.0f / __builtin_sqrtf(variance + eps);
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(out + i, (load<W>(x + i) - mean) * scale * load<W>(weight + i) + load<W>(bias + i));
  for (; i < n; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// Applies f to W values at a time; a short tail goes through a padded vector, so every element sees the same arithmetic.
template <int W, typename Map>
KIMI_INLINE void map2(const float* a, const float* b, int64_t n, float* out, const Map& map) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(out + i, map(load<W>(a + i), load<W>(b + i)));
  if (i < n) {
    typename Vec<W>::F va = {}, vb = {};
    for (int64_t j = i; j < n; ++j) va[j - i] = a[j], vb[j - i] = b[j];
    const typename Vec<W>::F result = map(va, vb);
    for (int64_t j = i; j < n; ++j) out[j] = result[j - i];
  }
}

template <int W>
void silu_mul(const float* gate, const float* up, int64_t n, float* out) {
  using F = typename Vec<W>::F;
  map2<W>(gate, up, n, out, [](F g, F u) { return g / (1.0f + exp<W>(-g)) * u; });
}

// 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
template <int W>
void gelu_tanh(float* x, int64_t n) {
  using F = typename Vec<W>::F;
  map2<W>(x, x, n, x, [](F v, F) {
    const F u = v * (0.044715f * (v * v) + 1.0f) * 0.7978845608028654f;
    return v / (1.0f + exp<W>(u * -2.0f));
  });
}

inline void gelu_erf_row(float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678118654752f));
}

inline void rotate_pairs_row(float* x, const float* cos_sin, int64_t n_pairs) {
  for (int64_t j = 0; j < n_pairs; ++j) {
    const float a = x[2 * j], b = x[2 * j + 1], c = cos_sin[2 * j], s = cos_sin[2 * j + 1];
    x[2 * j] = a * c - b * s;
    x[2 * j + 1] = a * s + b * c;
  }
}

template <int W>
void add_scaled(const float* x, float scale, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + W <= n; i += W) store<W>(out + i, load<W>(out + i) + load<W>(x + i) * scale);
  for (; i < n; ++i) out[i] += x[i] * scale;
}

template <int W>
void f16_from_f32_row(const float* x, int64_t n, uint16_t* out) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
#endif
  for (; i < n; ++i) out[i] = f16_from_f32(x[i]);
}

template <int W>
void f32_from_q8_row(const uint8_t* bytes, const uint16_t* scales, int64_t n, float* out) {
  typedef uint8_t Bytes __attribute__((vector_size(W), aligned(1), may_alias));
  for (int64_t at = 0; at < n; at += 32) {
    const float scale = f32_from_f16(scales[at / 32]);
    if (n - at < 32) {
      for (int64_t i = at; i < n; ++i) out[i] = static_cast<float>(bytes[i] - 128) * scale;
      return;
    }
    for (int64_t i = at; i < at + 32; i += W) {
      const Bytes some = *reinterpret_cast<const Bytes*>(bytes + i);
      store<W>(out + i,
               __builtin_convertvector(__builtin_convertvector(some, typename Vec<W>::I) - 128, typename Vec<W>::F) * scale);
    }
  }
}

}  // namespace
}  // namespace kimi::cpu
