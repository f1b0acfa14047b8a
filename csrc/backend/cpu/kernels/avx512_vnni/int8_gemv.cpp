// gemv_q8 of the avx512-vnni table: sixteen weight rows a pass, one per lane.
#include "backend/cpu/kernels/avx512_vnni/int8_lanes.h"
#include "backend/cpu/kernels/avx512_vnni/parts.h"

namespace kimi::cpu::avx512_vnni {

void fill_gemv_q8(KernelTable* table) { loops::fill_gemv<Lanes>(table); }

}  // namespace kimi::cpu::avx512_vnni
