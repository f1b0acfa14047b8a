// The lanes of avx2: products by vpmaddubsw.
#pragma once
#include "backend/cpu/kernels/loops/lanes_256.h"

namespace kimi::cpu {
namespace {

struct Lanes : Lanes256 {
  // Exact dot of one group: `n` dwords of unsigned weights u <= max_u with signed activations, minus bias times their sum.
  // vpmaddubsw adds two products in 16 bits: up to 2 * 127 * max_u a time. Weights of 8 bits give it |w| <= 128 and the
  // activations their sign, whose products (2 * 127 * 128 = 32512) never saturate.
  template <int n, int bias, int max_u>
  KIMI_INLINE U dot(const U* u, const int8_t* x, int32_t x_isum) {
    constexpr int kSums = 32767 / (2 * 127 * max_u);  // how many fit 16 bits; 0: weights of 8 bits
    static_assert(kSums > 0 || bias == 128);
    const U ones = _mm256_set1_epi16(1);
    U acc = bias && kSums ? splat(static_cast<uint32_t>(-bias * x_isum)) : _mm256_setzero_si256();
    U sum16 = _mm256_setzero_si256();
    for (int i = 0; i < n; ++i) {
      int32_t four;
      __builtin_memcpy(&four, x + 4 * i, 4);
      const U xs = _mm256_set1_epi32(four);
      if constexpr (kSums == 0) {
        const U w = _mm256_xor_si256(u[i], splat(0x80808080));
        const U products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(xs, w));
        acc = _mm256_add_epi32(acc, _mm256_madd_epi16(products, ones));
      } else {
        const U products = _mm256_maddubs_epi16(u[i], xs);
        sum16 = i % kSums ? _mm256_add_epi16(sum16, products) : products;
        if (i % kSums == kSums - 1 || i == n - 1) acc = _mm256_add_epi32(acc, _mm256_madd_epi16(sum16, ones));
      }
      asm("" : "+x"(acc), "+x"(sum16));  // in this order: as a tree the sums need more registers than there are
    }
    return acc;
  }
};

}  // namespace
}  // namespace kimi::cpu
