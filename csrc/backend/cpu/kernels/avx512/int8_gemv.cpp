// gemv_q8 of the avx512 table: sixteen weight rows a pass, one per lane.
#include "backend/cpu/kernels/avx512/int8_lanes.h"
#include "backend/cpu/kernels/avx512/parts.h"

namespace kimi::cpu::avx512 {
namespace {

template <quant::Type type>
void gemv(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out, int64_t out_stride,
          const uint8_t* next) {
  loops::gemv_lanes<Lanes, type>(w, row_bytes, n_rows, x, n_x, out, out_stride, next);
}

}  // namespace

void fill_gemv_q8(KernelTable* table) {
#define KIMI_FILL(name, id) table->gemv_q8[static_cast<int>(quant::Type::name)] = gemv<quant::Type::name>;
  KIMI_QUANT_TYPES(KIMI_FILL)
#undef KIMI_FILL
}

}  // namespace kimi::cpu::avx512
