// The int8 kernels of the generic table: loops/int8.h for every format, compiled for the baseline of the architecture.
// Right everywhere and the twin that faster instruction sets are compared with.
#include "backend/cpu/kernels/loops/int8.h"

namespace kimi::cpu {
namespace {

constexpr int kLanes = 8;

void quantize_row(const float* x, int64_t k, Q8Block* out) { loops::quantize_row(x, k, out); }

template <quant::Type type>
void gemv(const void* w, int64_t row_bytes, int64_t n_rows, const Q8Rows& x, int64_t n_x, float* out, int64_t out_stride,
          const uint8_t*) {
  loops::gemv<type>(w, row_bytes, n_rows, x, n_x, out, out_stride);
}

template <quant::Type type>
void pack_panel(const void* w, int64_t row_bytes, int64_t n_rows, int64_t k, PanelQ8* out) {
  loops::pack_panel<type, kLanes>(w, row_bytes, n_rows, k, out);
}

void gemm_panel(const PanelQ8& panel, const Q8Rows& x, const int32_t* rows, int64_t n_x, float* out, int64_t out_stride) {
  loops::gemm_panel<kLanes>(panel, x, rows, n_x, out, out_stride);
}

template <quant::Type type>
void fill_type(KernelTable* table) {
  table->gemv_q8[static_cast<int>(type)] = gemv<type>;
  table->pack_panel_q8[static_cast<int>(type)] = pack_panel<type>;
}

}  // namespace

void fill_int8_generic(KernelTable* table) {
  table->quantize_row = quantize_row;
  table->panel_lanes = kLanes;
  table->gemm_panel_q8 = gemm_panel;
#define KIMI_FILL(name, id) fill_type<quant::Type::name>(table);
  KIMI_QUANT_TYPES(KIMI_FILL)
#undef KIMI_FILL
}

}  // namespace kimi::cpu
