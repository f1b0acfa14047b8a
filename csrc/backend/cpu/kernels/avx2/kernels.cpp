// The avx2 table: float loops of 8 lanes in tiles of 6 x 16; the int8 half comes from int8.cpp beside it.
#include "backend/cpu/kernels/loops/float_table.h"

namespace kimi::cpu {

void fill_avx2(KernelTable* table) {
  fill_float<8, 6>(table);
  fill_int8_avx2(table);
}

}  // namespace kimi::cpu
