// A vector of W floats in the compiler's own vector types, so that one source serves every instruction set.
// Included only into translation units of one ISA; everything here is inlined into them.
#pragma once
#include <stdint.h>

#include "base/f16.h"

namespace kimi::cpu {
namespace {

template <int W>
struct Vec {
  typedef float F __attribute__((vector_size(W * 4)));
  typedef int32_t I __attribute__((vector_size(W * 4)));
  typedef float FU __attribute__((vector_size(W * 4), aligned(1), may_alias));
  typedef int32_t IU __attribute__((vector_size(W * 4), aligned(1), may_alias));
  typedef uint16_t H __attribute__((vector_size(W * 2)));
  typedef uint16_t HU __attribute__((vector_size(W * 2), aligned(1), may_alias));
};

template <int W>
KIMI_INLINE typename Vec<W>::F load(const float* p) {
  return *reinterpret_cast<const typename Vec<W>::FU*>(p);
}
template <int W>
KIMI_INLINE void store(float* p, typename Vec<W>::F v) {
  *reinterpret_cast<typename Vec<W>::FU*>(p) = v;
}
template <int W>
KIMI_INLINE typename Vec<W>::F splat(float x) {
  return x - typename Vec<W>::F{};
}
template <int W>
KIMI_INLINE typename Vec<W>::F max(typename Vec<W>::F a, typename Vec<W>::F b) {
  return a > b ? a : b;
}
template <int W>
KIMI_INLINE typename Vec<W>::F min(typename Vec<W>::F a, typename Vec<W>::F b) {
  return a < b ? a : b;
}
// Pairwise, in one fixed order.
template <int W>
KIMI_INLINE float sum(typename Vec<W>::F v) {
  float lanes[W];
  store<W>(lanes, v);
  for (int step = W / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

// e^x, relative error below 2e-7 on [-87, 88]; smaller x give about 1e-38, larger ones stay at e^88.
// Cephes-style range reduction x = n ln2 + r, then a Taylor polynomial of degree 7 on |r| <= ln2 / 2.
template <int W>
KIMI_INLINE typename Vec<W>::F exp(typename Vec<W>::F x) {
  using F = typename Vec<W>::F;
  using I = typename Vec<W>::I;
  x = min<W>(max<W>(x, splat<W>(-87.0f)), splat<W>(88.0f));
  const F magic = splat<W>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F shifted = x * 1.44269504088896341f + magic;
  const F n = shifted - magic;
  F r = x - n * 0.693145751953125f;
  r = r - n * 1.42860682030941723e-6f;
  F p = splat<W>(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const I exponent = (reinterpret_cast<I>(shifted) - 0x4b400000 + 127) << 23;
  return p * reinterpret_cast<F>(exponent);
}

}  // namespace
}  // namespace kimi::cpu
