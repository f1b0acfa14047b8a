// pack_panel_q8 of the avx512-vnni table: two passes of sixteen weight rows, one per lane.
#include "backend/cpu/kernels/avx512_vnni/int8_lanes.h"
#include "backend/cpu/kernels/avx512_vnni/parts.h"

namespace kimi::cpu::avx512_vnni {

void fill_pack_q8(KernelTable* table) { loops::fill_pack<Lanes, kPanelLanes>(table); }

}  // namespace kimi::cpu::avx512_vnni
