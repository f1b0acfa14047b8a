// pack_panel_q8 of the avx2 table: four passes of eight weight rows, one per lane.
#include "backend/cpu/kernels/avx2/int8.h"
#include "backend/cpu/kernels/avx2/int8_lanes.h"

namespace kimi::cpu::avx2 {
namespace {

template <quant::Type type>
void pack_panel(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out) {
  loops::pack_lanes<Lanes, type, kPanelLanes>(w, row_bytes, n_rows, k, out);
}

}  // namespace

void fill_pack_q8(KernelTable* table) {
#define KIMI_FILL(name, id) table->pack_panel_q8[static_cast<int>(quant::Type::name)] = pack_panel<quant::Type::name>;
  KIMI_QUANT_TYPES(KIMI_FILL)
#undef KIMI_FILL
}

}  // namespace kimi::cpu::avx2
