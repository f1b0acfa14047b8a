// The int8 half of the avx512-vnni table: quantize_row here, the others in int8_gemv.cpp, int8_pack.cpp and int8_gemm.cpp.
#include "backend/cpu/kernels/loops/int8.h"

#include "backend/cpu/kernels/avx512_vnni/parts.h"
#include "backend/cpu/kernels/loops/avx512_intrinsics.h"
#include "base/f16.h"

namespace kimi::cpu {
namespace {

// loops/int8.h defines the result, bit by bit, also for what is not finite.
void quantize_row(const float* x, int64_t k, Q8Block* out) {
  const __m512 limit = _mm512_set1_ps(127.0f), lower = _mm512_set1_ps(-127.0f);
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  for (int64_t g = 0; g < k / 32; ++g) {
    const __m512 a = _mm512_loadu_ps(x + 32 * g), b = _mm512_loadu_ps(x + 32 * g + 16);
    const __m512i bits_a = _mm512_and_si512(_mm512_castps_si512(a), magnitude),
                  bits_b = _mm512_and_si512(_mm512_castps_si512(b), magnitude);
    const int32_t amax_bits = _mm512_reduce_max_epi32(_mm512_max_epi32(bits_a, bits_b));
    const float amax = f32_from_bits(static_cast<uint32_t>(amax_bits));
    const float inverse = amax_bits != 0 ? 127.0f / amax : 0.0f;
    const auto rounded = [&](__m512 v) {
      v = _mm512_mul_ps(v, _mm512_set1_ps(inverse));
      const __mmask16 ordered = _mm512_cmp_ps_mask(v, v, _CMP_ORD_Q);
      v = _mm512_max_ps(_mm512_min_ps(v, limit), lower);
      return _mm512_maskz_cvt_roundps_epi32(ordered, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    };
    const __m512i qa = rounded(a), qb = rounded(b);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].q), _mm512_cvtepi32_epi8(qa));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out[g].q + 16), _mm512_cvtepi32_epi8(qb));
    loops::finish_block(amax, _mm512_reduce_add_epi32(qa), _mm512_reduce_add_epi32(qb), out + g);
  }
}

}  // namespace

void fill_int8_avx512_vnni(KernelTable* table) {
  table->quantize_row = quantize_row;
  table->panel_lanes = avx512_vnni::kPanelLanes;
  avx512_vnni::fill_gemv_q8(table);
  avx512_vnni::fill_pack_q8(table);
  avx512_vnni::fill_gemm_q8(table);
  avx512_vnni::fill_latent_q8(table);
}

}  // namespace kimi::cpu
