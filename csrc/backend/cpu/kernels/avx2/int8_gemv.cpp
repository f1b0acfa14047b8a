// gemv_q8 of the avx2 table: eight weight rows a pass, one per lane.
#include "backend/cpu/kernels/avx2/int8.h"
#include "backend/cpu/kernels/avx2/int8_lanes.h"

namespace kimi::cpu::avx2 {

void fill_gemv_q8(KernelTable* table) { loops::fill_gemv<Lanes>(table); }

}  // namespace kimi::cpu::avx2
