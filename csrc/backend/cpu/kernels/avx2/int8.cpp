// The int8 half of the avx2 table: quantize_row here, the others in int8_gemv.cpp, int8_pack.cpp and int8_gemm.cpp.
#include "backend/cpu/kernels/avx2/int8.h"

#include <immintrin.h>

#include "backend/cpu/kernels/loops/int8.h"
#include "base/f16.h"

namespace kimi::cpu {
namespace {

// The largest, or the sum, of 8 lanes.
KIMI_INLINE int32_t largest(__m256i v) {
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
KIMI_INLINE int32_t total(__m256i v) {
  __m128i m = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  m = _mm_add_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}

// loops/int8.h defines the result, bit by bit, also for what is not finite.
void quantize_row(const float* x, int64_t k, Q8Block* out) {
  const __m256 limit = _mm256_set1_ps(127.0f), lower = _mm256_set1_ps(-127.0f);
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < k / 32; ++g) {
    __m256 v[4];
    __m256i largest_bits = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
      v[i] = _mm256_loadu_ps(x + 32 * g + 8 * i);
      largest_bits = _mm256_max_epi32(largest_bits, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    const int32_t amax_bits = largest(largest_bits);
    const float amax = f32_from_bits(static_cast<uint32_t>(amax_bits));
    const float inverse = amax_bits != 0 ? 127.0f / amax : 0.0f;
    __m256i rounded[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 product = _mm256_mul_ps(v[i], _mm256_set1_ps(inverse));
      const __m256 ordered = _mm256_cmp_ps(product, product, _CMP_ORD_Q);
      const __m256 clamped = _mm256_and_ps(_mm256_max_ps(_mm256_min_ps(product, limit), lower), ordered);
      rounded[i] = _mm256_cvtps_epi32(clamped);  // to nearest even
    }
    const __m256i low = _mm256_packs_epi32(rounded[0], rounded[1]), high = _mm256_packs_epi32(rounded[2], rounded[3]);
    const __m256i bytes = _mm256_packs_epi16(low, high);  // dwords 0 2 4 6 | 1 3 5 7 of the result
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out[g].q), _mm256_permutevar8x32_epi32(bytes, order));
    loops::finish_block(amax, total(_mm256_add_epi32(rounded[0], rounded[1])), total(_mm256_add_epi32(rounded[2], rounded[3])),
                        out + g);
  }
}

}  // namespace

void fill_int8_avx2(KernelTable* table) {
  table->quantize_row = quantize_row;
  table->panel_lanes = avx2::kPanelLanes;
  table->gemm_panel_q8 = avx2::gemm_panel_q8;
  avx2::fill_gemv_q8(table);
  avx2::fill_pack_q8(table);
}

}  // namespace kimi::cpu
