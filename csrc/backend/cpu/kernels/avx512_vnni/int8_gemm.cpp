// gemm_panel_q8 of the avx512-vnni table: 32 weight rows x up to 6 tokens in registers.
//
// Of 32 registers, 12 are integer and 12 float accumulators. Per group of 32 and accumulator there are 8 vpdpbusd and, on the
// same two ports, a multiply and a fused multiply-add: 80 % of the peak is what this can reach (73 % with a minimum, 67 % with
// groups of 16). Conversions, additions and shifts have ports of their own.
#include "backend/cpu/kernels/avx512_vnni/parts.h"
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "backend/cpu/kernels/loops/vnni_gemm.h"

namespace kimi::cpu::avx512_vnni {
namespace {

struct Vectors {
  using U = __m512i;
  using F = __m512;
  static constexpr int kWidth = 16, kTokens = 6;
  // Shorter blocks stay in the first-level cache, but starting a tile costs more.
  static constexpr int64_t kDepth = 2048;
  static constexpr bool kSumsInRegisters = true;
  static_assert(kPanelLanes == loops::kVnniPanelLanes);

  KIMI_INLINE U splat(uint32_t bits) { return _mm512_set1_epi32(static_cast<int>(bits)); }
  KIMI_INLINE U zeros() { return _mm512_setzero_si512(); }
  KIMI_INLINE U load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  KIMI_INLINE U broadcast(const void* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm512_set1_epi32(four);
  }
  KIMI_INLINE U multiply_low_halves(U a, U b) { return _mm512_madd_epi16(a, b); }
  KIMI_INLINE void add_dot(U& acc, U weights, U x) { acc = _mm512_dpbusd_epi32(acc, weights, x); }
  KIMI_INLINE F zero() { return _mm512_setzero_ps(); }
  KIMI_INLINE F load_floats(const float* from) { return _mm512_loadu_ps(from); }
  KIMI_INLINE void store_floats(float* to, F a) { _mm512_storeu_ps(to, a); }
  KIMI_INLINE F splat_float(float a) { return _mm512_set1_ps(a); }
  KIMI_INLINE F to_float(U a) { return _mm512_cvtepi32_ps(a); }
  KIMI_INLINE F multiply(F a, F b) { return _mm512_mul_ps(a, b); }
  KIMI_INLINE F multiply_add(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  KIMI_INLINE F subtract_product(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c - a * b
};

}  // namespace

void fill_gemm_q8(KernelTable* table) { table->gemm_panel_q8 = loops::vnni_gemm<Vectors>; }

}  // namespace kimi::cpu::avx512_vnni
