// bf16 numbers in AVX-512 registers, two that go into one sum side by side in 32 bits.
#pragma once
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "backend/cpu/kernels/loops/gemm.h"

namespace kimi::cpu {
namespace {

// Rounded to nearest even, as everything here.
KIMI_INLINE __m512i bf16_from_floats(__m512 low, __m512 high) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}

// [low 0, high 0, low 1, high 1, ...].
KIMI_INLINE __m512i pairs(__m512 low, __m512 high) {
  alignas(64) static constexpr uint16_t kOrder[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), bf16_from_floats(low, high));
}

KIMI_INLINE __mmask16 first(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1u << n) - 1); }
KIMI_INLINE __mmask32 first_32(int64_t n) { return n >= 32 ? 0xffffffffu : (1u << n) - 1; }

// A masked store is slow and cannot be read back before it is in the cache: whole vectors are stored plainly.
KIMI_INLINE void store_numbers(uint16_t* out, int64_t n, __m512i numbers) {
  if (n >= 32)
    _mm512_storeu_si512(out, numbers);
  else
    _mm512_mask_storeu_epi16(out, first_32(n), numbers);
}
KIMI_INLINE void store_pairs(uint16_t* out, int64_t n, __m512i numbers) {
  if (n >= 16)
    _mm512_storeu_si512(out, numbers);
  else
    _mm512_mask_storeu_epi32(out, first(n), numbers);
}
KIMI_INLINE __m512i load_numbers(const uint16_t* x, int64_t n) {
  return n >= 32 ? _mm512_loadu_si512(x) : _mm512_maskz_loadu_epi16(first_32(n), x);
}
KIMI_INLINE __m512i load_pairs(const uint16_t* x, int64_t n) {
  return n >= 16 ? _mm512_loadu_si512(x) : _mm512_maskz_loadu_epi32(first(n), x);
}
KIMI_INLINE __m512 load_floats(const float* x, int64_t n) {
  return n >= 16 ? _mm512_loadu_ps(x) : _mm512_maskz_loadu_ps(first(n), x);
}

// 16 rows of 16 dwords, transposed: dword i of row r becomes dword r of out[i].
KIMI_INLINE void transpose(__m512i (&a)[16]) {
  __m512i b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {  // pairs of rows
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // fours of rows: register i + j has dwords j, j + 4, j + 8, j + 12
    a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
    a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
    a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
    a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(a[j], a[j + 4], 0x88), high = _mm512_shuffle_i32x4(a[j], a[j + 4], 0xdd);
    const __m512i low2 = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0x88), high2 = _mm512_shuffle_i32x4(a[j + 8], a[j + 12], 0xdd);
    b[j] = _mm512_shuffle_i32x4(low, low2, 0x88);
    b[j + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    b[j + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    b[j + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = b[i];
}

// Weights in place: a pair of rows of floats becomes one row of pairs. -> [n_pairs, 16 NV, 2]
template <int NV>
KIMI_INLINE uint16_t* pair_weights(float* scores, int64_t n_keys) {
  constexpr int64_t kLanes = 16 * NV;
  auto* weights = reinterpret_cast<uint16_t*>(scores);
  for (int64_t key = 0; key < n_keys; key += 2)
    for (int v = 0; v < NV; ++v) {
      const float* row = scores + key * kLanes + 16 * v;
      const __m512 low = _mm512_loadu_ps(row), high = key + 1 < n_keys ? _mm512_loadu_ps(row + kLanes) : _mm512_setzero_ps();
      _mm512_storeu_si512(weights + key * kLanes + 32 * v, pairs(low, high));
    }
  return weights;
}

}  // namespace
}  // namespace kimi::cpu
