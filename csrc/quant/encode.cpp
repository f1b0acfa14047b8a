// The encoders of each instruction set (base/isa.h).
#include "quant/encode.h"

#include <string>

#include "base/error.h"
#include "base/isa.h"

namespace kimi::quant {
namespace {

void fill(IsaId id, Encoders* table) {
  switch (id) {
#if KIMI_X86
    case IsaId::amx:
    case IsaId::avx512:
    case IsaId::avx512_vnni:
      return fill_encoders_avx512(table);
    case IsaId::avx2_vnni:
    case IsaId::avx2:
      return fill_encoders_avx2(table);
#endif
    default:
      return fill_encoders_generic(table);
  }
}

struct Tables {
  Encoders tables[kIsaCount] = {};

  Tables() {
    for (const Isa& isa : isas())
      if (isa.supported) fill(isa.id, &tables[static_cast<int>(isa.id)]);
  }
};

}  // namespace

const Encoders& select_encoders(const char* isa) {
  static const Tables all;
  return all.tables[static_cast<int>(choose_isa(isa).id)];
}

bool has_encoder(Type type) { return select_encoders("auto").encode[static_cast<int>(type)] != nullptr; }

RowEncoder encoder_of(const Encoders& encoders, Type type) {
  if (const RowEncoder encode = encoders.encode[static_cast<int>(type)]) return encode;
  std::string writable;
  for (const Format& format : formats())
    if (has_encoder(format.type)) writable.append(" ").append(format.name);
  fail(ErrorKind::unsupported, "quant.no_encoder", "type %s is read, but not written: use one of%s", format_of(type).name,
       writable.c_str());
}

}  // namespace kimi::quant
