// Sixteen weight rows side by side in AVX-512 registers: what loops/lane_formats.h and loops/lane_kernels.h need to know of this
// ISA.
#pragma once
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "backend/cpu/kernels/loops/lane_kernels.h"

namespace kimi::cpu {
namespace {

struct Lanes {
  using U = __m512i;
  using F = __m512;
  static constexpr int kWidth = 16;
  static constexpr bool kPlainPanels = false;

  KIMI_INLINE U splat(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  KIMI_INLINE U bit_and(U a, U b) { return _mm512_and_si512(a, b); }
  KIMI_INLINE U bit_or(U a, U b) { return _mm512_or_si512(a, b); }
  KIMI_INLINE U bit_xor(U a, U b) { return _mm512_xor_si512(a, b); }
  KIMI_INLINE U add(U a, U b) { return _mm512_add_epi32(a, b); }
  KIMI_INLINE U subtract(U a, U b) { return _mm512_sub_epi32(a, b); }
  KIMI_INLINE U add_bytes(U a, U b) { return _mm512_add_epi8(a, b); }
  KIMI_INLINE U minimum(U a, U b) { return _mm512_min_epi32(a, b); }
  KIMI_INLINE U maximum(U a, U b) { return _mm512_max_epi32(a, b); }
  template <int n>
  KIMI_INLINE U shift_left(U a) {
    return _mm512_slli_epi32(a, n);
  }
  template <int n>
  KIMI_INLINE U shift_right(U a) {
    return _mm512_srli_epi32(a, n);
  }
  template <int n>
  KIMI_INLINE U shift(U a) {  // to the left when n > 0
    return n > 0 ? _mm512_slli_epi32(a, n > 0 ? n : 0) : n < 0 ? _mm512_srli_epi32(a, n < 0 ? -n : 0) : a;
  }
  template <int i>
  KIMI_INLINE U byte_of(U a) {
    return i == 3 ? _mm512_srli_epi32(a, 24) : _mm512_and_si512(_mm512_srli_epi32(a, 8 * i), splat(255));
  }
  template <int i>
  KIMI_INLINE U signed_byte_of(U a) {
    return _mm512_srai_epi32(i == 3 ? a : _mm512_slli_epi32(a, 24 - 8 * i), 24);
  }
  KIMI_INLINE F as_float(U a) { return _mm512_castsi512_ps(a); }
  KIMI_INLINE F to_float(U a) { return _mm512_cvtepi32_ps(a); }
  KIMI_INLINE F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
  KIMI_INLINE F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  KIMI_INLINE F subtract_product(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
  KIMI_INLINE F negate(F a) { return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f)); }
  KIMI_INLINE F splat_float(float a) { return _mm512_set1_ps(a); }
  KIMI_INLINE F zero() { return _mm512_setzero_ps(); }
  KIMI_INLINE F f32_from_f16_low(U a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
  KIMI_INLINE F f32_from_f16_high(U a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16))); }
  KIMI_INLINE F load_floats(const float* from) { return _mm512_loadu_ps(from); }
  KIMI_INLINE void store(void* to, U a) { _mm512_storeu_si512(to, a); }
  KIMI_INLINE void store_floats(float* to, F a) { _mm512_storeu_ps(to, a); }
  // The first n lanes.
  KIMI_INLINE void store_some(float* to, F a, int64_t n) { _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << n) - 1), a); }
  KIMI_INLINE U load_table(const uint8_t* table) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  }
  KIMI_INLINE U look_up(U table, U index) { return _mm512_shuffle_epi8(table, index); }

  // u[t] += 16 where bits 4 t .. 4 t + 3 of qh say so, bit by byte.
  KIMI_INLINE void add_fifth_bits(U* u, U qh) {
    const U sixteen = _mm512_set1_epi8(16), even = splat(0x08040201), odd = splat(0x80402010);
    const U repeat = _mm512_set_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0, 0x0c0c0c0c,
                                      0x08080808, 0x04040404, 0, 0x0c0c0c0c, 0x08080808, 0x04040404, 0);
    for (int i = 0; i < 4; ++i) {
      const U bits = _mm512_shuffle_epi8(qh, _mm512_add_epi8(repeat, _mm512_set1_epi8(static_cast<char>(i))));
      u[2 * i] = _mm512_mask_add_epi8(u[2 * i], _mm512_test_epi8_mask(bits, even), u[2 * i], sixteen);
      u[2 * i + 1] = _mm512_mask_add_epi8(u[2 * i + 1], _mm512_test_epi8_mask(bits, odd), u[2 * i + 1], sixteen);
    }
  }

  // Bytes offset .. offset + 15 of rows 4 i + j, which begin at p[i] + j * stride: four dwords, a row per lane.
  KIMI_INLINE void load_transposed(const uint8_t* const* p, int64_t stride, int offset, U* out) {
    U a[4];
    for (int j = 0; j < 4; ++j) {
      const auto part = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[i] + j * stride + offset)); };
      a[j] = _mm512_castsi128_si512(part(0));
      a[j] = _mm512_mask_broadcast_i32x4(a[j], 0x00f0, part(1));
      a[j] = _mm512_mask_broadcast_i32x4(a[j], 0x0f00, part(2));
      a[j] = _mm512_mask_broadcast_i32x4(a[j], 0xf000, part(3));
    }
    const U low01 = _mm512_unpacklo_epi32(a[0], a[1]), high01 = _mm512_unpackhi_epi32(a[0], a[1]);
    const U low23 = _mm512_unpacklo_epi32(a[2], a[3]), high23 = _mm512_unpackhi_epi32(a[2], a[3]);
    out[0] = _mm512_unpacklo_epi64(low01, low23);
    out[1] = _mm512_unpackhi_epi64(low01, low23);
    out[2] = _mm512_unpacklo_epi64(high01, high23);
    out[3] = _mm512_unpackhi_epi64(high01, high23);
  }

  // Exact dot of one group: `n` dwords of unsigned weights u <= max_u with signed activations, minus bias times their sum.
  template <int n, int bias, int max_u>
  KIMI_INLINE U dot(const U* u, const int8_t* x, int32_t x_isum) {
    U acc = bias ? splat(static_cast<uint32_t>(-bias * x_isum)) : _mm512_setzero_si512();
    for (int i = 0; i < n; ++i) {
      int32_t four;
      __builtin_memcpy(&four, x + 4 * i, 4);
      acc = _mm512_dpbusd_epi32(acc, u[i], _mm512_set1_epi32(four));
    }
    return acc;
  }
};

}  // namespace
}  // namespace kimi::cpu
