// Chooses the kernel table for this processor. CPUID is asked through the compiler's runtime, which also asks the
// operating system whether it saves the wide registers.
#include <cstring>
#include <mutex>
#include <string>

#include "backend/cpu/kernels/kernel_table.h"
#include "base/error.h"

namespace kimi::cpu {
namespace {

// Formats without a decoder of their own in the table use the reference decoder.
void fill_decoders(KernelTable* table) {
  for (const quant::Format& format : quant::formats()) {
    auto& slot = table->decode_row[static_cast<int>(format.type)];
    if (!slot) slot = format.decode;
  }
}

struct Tables {
  KernelTable tables[3] = {};
  Isa isas[3] = {};
  int count = 0;

  void add(const char* name, const char* requires_features, bool supported, void (*fill)(KernelTable*)) {
    KernelTable* table = &tables[count];
    if (supported) {
      fill(table);
      fill_decoders(table);
    }
    isas[count++] = {name, requires_features, supported, table};
  }

  Tables() {
#if KIMI_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    add("avx512", "AVX-512 F, BW, DQ, VL, VNNI, BF16", avx512, fill_avx512);
    add("avx2", "AVX2, FMA, F16C", avx2, fill_avx2);
#endif
    add("generic", "any processor", true, fill_generic);
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

const Isa* all_isas(int* count) {
  *count = tables().count;
  return tables().isas;
}

const KernelTable& select_kernels(const char* name) {
  int count;
  const Isa* isas = all_isas(&count);
  const bool automatic = !name || !*name || std::strcmp(name, "auto") == 0;
  std::string known;
  for (int i = 0; i < count; ++i) {
    if (automatic ? isas[i].supported : std::strcmp(name, isas[i].name) == 0) {
      KIMI_CHECK(isas[i].supported, ErrorKind::unsupported, "cpu.isa",
                 "instruction set %s needs %s, which this processor lacks: use auto", isas[i].name, isas[i].requires_features);
      return *isas[i].table;
    }
    known += std::string(i ? ", " : "") + isas[i].name;
  }
  fail(ErrorKind::bad_request, "cpu.isa", "unknown instruction set \"%s\", expected auto or one of %s", name, known.c_str());
}

}  // namespace kimi::cpu
