#include "base/isa.h"

#include <cstdlib>
#include <string>
#include <utility>

#include "base/error.h"

#if KIMI_X86
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kimi {
namespace {

#if KIMI_X86
// Not every compiler's __builtin_cpu_supports knows the name.
bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & 1u << 4);
}
bool has_amx_bf16() {
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kAmxBf16) && (edx & kAmxTile);
}
#if KIMI_AMX
// Kernels before 5.16, sandboxes, and alternate signal stacks too small for the registers are reasons to be refused.
bool may_use_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

// The compiler's runtime, which is asked for the wide registers, also asks the operating system whether it saves them.
std::vector<Isa> find_isas() {
  std::vector<Isa> found;
  const auto add = [&](IsaId id, const char* name, const char* needs, const char* refusal) {
    found.push_back({id, name, needs, !refusal, refusal});
  };
#if KIMI_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512_vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512vnni");
  const bool avx512 = avx512_vnni && __builtin_cpu_supports("avx512bf16");
  const auto unless = [](bool supported) { return supported ? nullptr : "which this processor lacks"; };
  const char* no_amx = unless(avx512 && has_amx_bf16());
#if KIMI_AMX
  if (!no_amx && !may_use_tiles()) no_amx = "whose registers the operating system does not lend to this process";
#else
  if (!no_amx) no_amx = "which the compiler of this build does not know";
#endif
  add(IsaId::amx, "amx", "AVX-512 F, BW, DQ, VL, VNNI, BF16, AMX TILE, BF16", no_amx);
  add(IsaId::avx512, "avx512", "AVX-512 F, BW, DQ, VL, VNNI, BF16", unless(avx512));
  add(IsaId::avx512_vnni, "avx512-vnni", "AVX-512 F, BW, DQ, VL, VNNI", unless(avx512_vnni));
  // vdpbf16ps does twice as much as float multiply-adds on AMD's processors, and half as much on Intel's (docs/performance.md).
  if (__builtin_cpu_is("intel")) std::swap(found[1], found[2]);
  add(IsaId::avx2_vnni, "avx2-vnni", "AVX2, FMA, F16C, AVX-VNNI", unless(avx2 && has_avx_vnni()));
  add(IsaId::avx2, "avx2", "AVX2, FMA, F16C", unless(avx2));
#endif
  add(IsaId::generic, "generic", "any processor", nullptr);
  return found;
}

bool is_automatic(const char* name) { return !name || !*name || std::string(name) == "auto"; }

const Isa& named_isa(const std::string& name, const char* whose) {
  std::string known;
  for (const Isa& isa : isas()) {
    if (name == isa.name) {
      KIMI_CHECK(isa.supported, ErrorKind::unsupported, "cpu.isa", "%sinstruction set %s needs %s, %s: use auto", whose, isa.name,
                 isa.requires_features, isa.refusal);
      return isa;
    }
    known += std::string(known.empty() ? "" : ", ") + isa.name;
  }
  fail(ErrorKind::bad_request, "cpu.isa", "%sunknown instruction set \"%s\", expected auto or one of %s", whose, name.c_str(),
       known.c_str());
}

}  // namespace

const std::vector<Isa>& isas() {
  static const std::vector<Isa> found = find_isas();
  return found;
}

const Isa& choose_isa(const char* name) {
  if (!is_automatic(name)) return named_isa(name, "");
  const char* forced = std::getenv("KIMI_VL_CPU_ISA");
  if (!is_automatic(forced)) return named_isa(forced, "KIMI_VL_CPU_ISA: ");
  for (const Isa& isa : isas())
    if (isa.supported) return isa;
  return isas().back();  // generic, which every processor supports
}

}  // namespace kimi
