// pack_panel_q8 of the avx2 table: four passes of eight weight rows, one per lane.
#include "backend/cpu/kernels/avx2/int8.h"
#include "backend/cpu/kernels/avx2/int8_lanes.h"

namespace kimi::cpu::avx2 {

void fill_pack_q8(KernelTable* table) { loops::fill_pack<Lanes, kPanelLanes>(table); }

}  // namespace kimi::cpu::avx2
