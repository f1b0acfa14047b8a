// The generic table: float loops of 4 lanes in tiles of 6 x 8; the int8 half comes from int8.cpp beside it.
#include "backend/cpu/kernels/loops/float_table.h"

namespace kimi::cpu {

void fill_generic(KernelTable* table) {
  fill_float<4, 6>(table);
  fill_int8_generic(table);
}

}  // namespace kimi::cpu
