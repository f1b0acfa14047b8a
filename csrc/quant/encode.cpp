// Chooses the encoders for this processor.
#include "quant/encode.h"

#include <cstring>
#include <string>

#include "base/error.h"

namespace kimi::quant {
namespace {

struct Choice {
  const char* name;
  bool supported;
  Encoders table;
};
struct Choices {
  Choice choices[3] = {};
  int count = 0;

  void add(const char* name, bool supported, void (*fill)(Encoders*)) {
    Choice& choice = choices[count++];
    choice.name = name;
    choice.supported = supported;
    if (supported) fill(&choice.table);
  }
  Choices() {
#if KIMI_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    add("avx512", avx512, fill_encoders_avx512);
    add("avx2", avx2, fill_encoders_avx2);
#endif
    add("generic", true, fill_encoders_generic);
  }
};

}  // namespace

const Encoders& select_encoders(const char* isa) {
  static const Choices all;
  const bool automatic = std::strcmp(isa, "auto") == 0;
  for (int i = 0; i < all.count; ++i) {
    const Choice& choice = all.choices[i];
    if (automatic ? !choice.supported : std::strcmp(choice.name, isa) != 0) continue;
    KIMI_CHECK(choice.supported, ErrorKind::unsupported, "quant.isa", "this processor has no %s: use auto", isa);
    return choice.table;
  }
  fail(ErrorKind::bad_request, "quant.isa", "isa \"%s\": expected auto, avx512, avx2 or generic", isa);
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
