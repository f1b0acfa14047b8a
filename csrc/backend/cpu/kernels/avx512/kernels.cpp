// The avx512 table: that of avx512-vnni with attention and matrices in bf16.
#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu {

namespace avx512 {
void fill_bf16(KernelTable* table);  // bf16.cpp
}

void fill_avx512(KernelTable* table) {
  fill_avx512_vnni(table);
  avx512::fill_bf16(table);
}

}  // namespace kimi::cpu
