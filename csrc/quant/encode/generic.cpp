// The encoders for any processor: vectors of 4 lanes.
#define KIMI_QUANT_LANES 4
#include "quant/encode/table.h"

namespace kimi::quant {

void fill_encoders_generic(Encoders* table) {
  table->name = "generic";
  fill_table(table);
}

}  // namespace kimi::quant
