// Eight weight rows side by side in AVX2 registers: what lane_formats.h and lane_kernels.h need to know of such an instruction
// set, but for `dot`, which each of them adds.
#pragma once
#include <immintrin.h>

#include "backend/cpu/kernels/loops/lane_kernels.h"

namespace kimi::cpu {
namespace {

struct Lanes256 {
  using U = __m256i;
  using F = __m256;
  static constexpr int kWidth = 8;
  static constexpr bool kPlainPanels = true;

  KIMI_INLINE U splat(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  KIMI_INLINE U bit_and(U a, U b) { return _mm256_and_si256(a, b); }
  KIMI_INLINE U bit_or(U a, U b) { return _mm256_or_si256(a, b); }
  KIMI_INLINE U bit_xor(U a, U b) { return _mm256_xor_si256(a, b); }
  KIMI_INLINE U add(U a, U b) { return _mm256_add_epi32(a, b); }
  KIMI_INLINE U subtract(U a, U b) { return _mm256_sub_epi32(a, b); }
  KIMI_INLINE U add_bytes(U a, U b) { return _mm256_add_epi8(a, b); }
  KIMI_INLINE U minimum(U a, U b) { return _mm256_min_epi32(a, b); }
  KIMI_INLINE U maximum(U a, U b) { return _mm256_max_epi32(a, b); }
  template <int n>
  KIMI_INLINE U shift_left(U a) {
    return _mm256_slli_epi32(a, n);
  }
  template <int n>
  KIMI_INLINE U shift_right(U a) {
    return _mm256_srli_epi32(a, n);
  }
  template <int n>
  KIMI_INLINE U shift(U a) {  // to the left when n > 0
    return n > 0 ? _mm256_slli_epi32(a, n > 0 ? n : 0) : n < 0 ? _mm256_srli_epi32(a, n < 0 ? -n : 0) : a;
  }
  template <int i>
  KIMI_INLINE U byte_of(U a) {
    return i == 3 ? _mm256_srli_epi32(a, 24) : _mm256_and_si256(_mm256_srli_epi32(a, 8 * i), splat(255));
  }
  template <int i>
  KIMI_INLINE U signed_byte_of(U a) {
    return _mm256_srai_epi32(i == 3 ? a : _mm256_slli_epi32(a, 24 - 8 * i), 24);
  }
  KIMI_INLINE F as_float(U a) { return _mm256_castsi256_ps(a); }
  KIMI_INLINE F to_float(U a) { return _mm256_cvtepi32_ps(a); }
  KIMI_INLINE F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
  KIMI_INLINE F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  KIMI_INLINE F subtract_product(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
  KIMI_INLINE F negate(F a) { return _mm256_xor_ps(a, _mm256_set1_ps(-0.0f)); }
  KIMI_INLINE F splat_float(float a) { return _mm256_set1_ps(a); }
  KIMI_INLINE F zero() { return _mm256_setzero_ps(); }
  // Halves below 65536 in dwords -> floats.
  KIMI_INLINE F f32_from_halves(U a) {
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1)));
  }
  KIMI_INLINE F f32_from_f16_low(U a) { return f32_from_halves(_mm256_and_si256(a, splat(0xffff))); }
  KIMI_INLINE F f32_from_f16_high(U a) { return f32_from_halves(_mm256_srli_epi32(a, 16)); }
  KIMI_INLINE F load_floats(const float* from) { return _mm256_loadu_ps(from); }
  KIMI_INLINE void store(void* to, U a) { _mm256_storeu_si256(static_cast<__m256i*>(to), a); }
  KIMI_INLINE void store_floats(float* to, F a) { _mm256_storeu_ps(to, a); }
  // The first n lanes.
  KIMI_INLINE void store_some(float* to, F a, int64_t n) {
    const U lane = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    _mm256_maskstore_ps(to, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lane), a);
  }
  KIMI_INLINE U load_table(const uint8_t* table) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  KIMI_INLINE U look_up(U table, U index) { return _mm256_shuffle_epi8(table, index); }

  // u[t] += 16 where bits 4 t .. 4 t + 3 of qh say so, bit by byte.
  KIMI_INLINE void add_fifth_bits(U* u, U qh) {
    const U sixteen = _mm256_set1_epi8(16), even = splat(0x08040201), odd = splat(0x80402010);
    const U repeat = _mm256_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    for (int i = 0; i < 4; ++i) {
      const U bits = _mm256_shuffle_epi8(qh, _mm256_add_epi8(repeat, _mm256_set1_epi8(static_cast<char>(i))));
      const U first = _mm256_cmpeq_epi8(_mm256_and_si256(bits, even), even),
              second = _mm256_cmpeq_epi8(_mm256_and_si256(bits, odd), odd);
      u[2 * i] = _mm256_or_si256(u[2 * i], _mm256_and_si256(first, sixteen));
      u[2 * i + 1] = _mm256_or_si256(u[2 * i + 1], _mm256_and_si256(second, sixteen));
    }
  }

  // Bytes offset .. offset + 15 of rows 4 i + j, which begin at p[i] + j * stride: four dwords, a row per lane.
  KIMI_INLINE void load_transposed(const uint8_t* const* p, int64_t stride, int offset, U* out) {
    U a[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[i] + j * stride + offset)); };
      a[j] = _mm256_inserti128_si256(_mm256_castsi128_si256(part(0)), part(1), 1);
    }
    const U low01 = _mm256_unpacklo_epi32(a[0], a[1]), high01 = _mm256_unpackhi_epi32(a[0], a[1]);
    const U low23 = _mm256_unpacklo_epi32(a[2], a[3]), high23 = _mm256_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
  }
};

}  // namespace
}  // namespace kimi::cpu
