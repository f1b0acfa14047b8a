// The avx512 table: float loops of 16 lanes in tiles of 12 x 32; the int8 half comes from int8.cpp beside it.
#include "backend/cpu/kernels/avx512/parts.h"
#include "backend/cpu/kernels/loops/float_table.h"

namespace kimi::cpu {

void fill_avx512(KernelTable* table) {
  table->name = "avx512";
  fill_float<16, 12>(table);
  avx512::fill_bf16(table);
  fill_int8_avx512(table);
}

}  // namespace kimi::cpu
