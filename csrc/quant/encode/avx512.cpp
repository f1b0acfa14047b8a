// The encoders in vectors of 16 lanes. Compiled for AVX-512 F, BW, DQ, VL.
#define KIMI_QUANT_LANES 16
#include "quant/encode/table.h"

namespace kimi::quant {

void fill_encoders_avx512(Encoders* table) {
  table->name = "avx512";
  fill_table(table);
}

}  // namespace kimi::quant
