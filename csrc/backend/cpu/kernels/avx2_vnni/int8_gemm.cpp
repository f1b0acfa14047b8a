// gemm_panel_q8 of the avx2-vnni table: 16 weight rows x up to 6 tokens in registers.
//
// Of 16 registers, 12 are integer accumulators: fewer would wait for the latency of vpdpbusd. The float sums pass through
// memory at the end of a group, where their loads and stores have ports of their own. Per group of 32 and accumulator there are 8
// vpdpbusd and, on the same two ports, a conversion, a multiply and a fused multiply-add: 73 % of the peak is what this can
// reach.
#include <immintrin.h>

#include "backend/cpu/kernels/avx2_vnni/parts.h"
#include "backend/cpu/kernels/loops/vnni_gemm.h"

namespace kimi::cpu::avx2_vnni {
namespace {

struct Vectors {
  using U = __m256i;
  using F = __m256;
  static constexpr int kWidth = 8, kTokens = 6;
  static constexpr int64_t kDepth = 512;  // 16 KiB of weights
  static constexpr bool kSumsInRegisters = false;

  KIMI_INLINE U splat(uint32_t bits) { return _mm256_set1_epi32(static_cast<int>(bits)); }
  KIMI_INLINE U zeros() { return _mm256_setzero_si256(); }
  KIMI_INLINE U load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  KIMI_INLINE U broadcast(const void* from) {
    int32_t four;
    __builtin_memcpy(&four, from, 4);
    return _mm256_set1_epi32(four);
  }
  KIMI_INLINE U multiply_low_halves(U a, U b) { return _mm256_madd_epi16(a, b); }
  // In assembler, because GCC 12 copies accumulators around the intrinsic.
  KIMI_INLINE void add_dot(U& acc, U weights, U x) { __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(weights), "x"(x)); }
  KIMI_INLINE F zero() { return _mm256_setzero_ps(); }
  KIMI_INLINE F load_floats(const float* from) { return _mm256_loadu_ps(from); }
  KIMI_INLINE void store_floats(float* to, F a) { _mm256_storeu_ps(to, a); }
  KIMI_INLINE F splat_float(float a) { return _mm256_set1_ps(a); }
  KIMI_INLINE F to_float(U a) { return _mm256_cvtepi32_ps(a); }
  KIMI_INLINE F multiply(F a, F b) { return _mm256_mul_ps(a, b); }
  KIMI_INLINE F multiply_add(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  KIMI_INLINE F subtract_product(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c - a * b
};

}  // namespace

void fill_gemm_q8(KernelTable* table) { table->gemm_panel_q8 = loops::vnni_gemm<Vectors>; }

}  // namespace kimi::cpu::avx2_vnni
