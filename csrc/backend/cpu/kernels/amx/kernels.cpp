// The amx table: that of avx512 with matrices and attention over several tokens in tiles.
#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu {

namespace amx {
void fill_bf16(KernelTable* table);  // bf16.cpp
}

void fill_amx(KernelTable* table) {
  fill_avx512(table);
  amx::fill_bf16(table);
}

}  // namespace kimi::cpu
