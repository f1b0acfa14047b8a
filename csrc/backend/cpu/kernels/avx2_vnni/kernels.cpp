// The avx2-vnni table: that of avx2 with int8 products by vpdpbusd.
#include "backend/cpu/kernels/avx2_vnni/parts.h"

namespace kimi::cpu {

void fill_avx2_vnni(KernelTable* table) {
  fill_avx2(table);
  avx2_vnni::fill_gemv_q8(table);
  avx2_vnni::fill_gemm_q8(table);
}

}  // namespace kimi::cpu
