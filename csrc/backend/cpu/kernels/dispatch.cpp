// The kernel table of each instruction set (base/isa.h).
#include "backend/cpu/kernels/kernel_table.h"
#include "base/isa.h"

namespace kimi::cpu {
namespace {

void fill(IsaId id, KernelTable* table) {
  switch (id) {
#if KIMI_AMX
    case IsaId::amx:
      return fill_amx(table);
#endif
#if KIMI_X86
    case IsaId::avx512:
      return fill_avx512(table);
    case IsaId::avx512_vnni:
      return fill_avx512_vnni(table);
    case IsaId::avx2_vnni:
      return fill_avx2_vnni(table);
    case IsaId::avx2:
      return fill_avx2(table);
#endif
    default:
      return fill_generic(table);
  }
}

struct Tables {
  KernelTable tables[kIsaCount] = {};

  Tables() {
    for (const Isa& isa : isas()) {
      if (!isa.supported) continue;
      KernelTable* table = &tables[static_cast<int>(isa.id)];
      fill(isa.id, table);
      table->name = isa.name;
      for (const quant::Format& format : quant::formats()) {  // the reference decoder where a table has none of its own
        auto& slot = table->decode_row[static_cast<int>(format.type)];
        if (!slot) slot = format.decode;
      }
    }
  }
};

}  // namespace

const KernelTable& select_kernels(const char* name) {
  static const Tables all;
  return all.tables[static_cast<int>(choose_isa(name).id)];
}

}  // namespace kimi::cpu
