// The encoders in vectors of 8 lanes. Compiled for AVX2 and F16C.
#define KIMI_QUANT_LANES 8
#include "quant/encode/table.h"

namespace kimi::quant {

void fill_encoders_avx2(Encoders* table) {
  table->name = "avx2";
  fill_table(table);
}

}  // namespace kimi::quant
