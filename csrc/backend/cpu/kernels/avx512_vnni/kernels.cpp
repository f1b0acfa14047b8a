// The avx512-vnni table: float loops of 16 lanes in tiles of 12 x 32; the int8 half comes from int8.cpp beside it.
#include "backend/cpu/kernels/loops/float_table.h"

namespace kimi::cpu {

void fill_avx512_vnni(KernelTable* table) {
  fill_float<16, 12>(table);
  fill_int8_avx512_vnni(table);
}

}  // namespace kimi::cpu
