// gemv_q8 of the avx2-vnni table: eight weight rows a pass, one per lane; products by vpdpbusd.
#include "backend/cpu/kernels/avx2_vnni/parts.h"
#include "backend/cpu/kernels/loops/lanes_256.h"

namespace kimi::cpu::avx2_vnni {
namespace {

struct Lanes : Lanes256 {
  // Exact dot of one group: `n` dwords of unsigned weights with signed activations, minus bias times their sum.
  template <int n, int bias, int max_u>
  KIMI_INLINE U dot(const U* u, const int8_t* x, int32_t x_isum) {
    U acc = bias ? splat(static_cast<uint32_t>(-bias * x_isum)) : _mm256_setzero_si256();
    for (int i = 0; i < n; ++i) {
      int32_t four;
      __builtin_memcpy(&four, x + 4 * i, 4);
      acc = _mm256_dpbusd_avx_epi32(acc, u[i], _mm256_set1_epi32(four));
    }
    return acc;
  }
};

}  // namespace

void fill_gemv_q8(KernelTable* table) { loops::fill_gemv<Lanes>(table); }

}  // namespace kimi::cpu::avx2_vnni
