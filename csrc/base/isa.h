// Instruction sets: which there are, what each needs of the processor, and which one is used. The only reader of the
// environment variable KIMI_VL_CPU_ISA; refuses to know what is computed with them: kernels and encoders keep tables by IsaId.
#pragma once
#include <vector>

namespace kimi {

enum class IsaId { generic, avx2, avx2_vnni, avx512_vnni, avx512, amx };
constexpr int kIsaCount = 6;

struct Isa {
  IsaId id;
  const char* name;               // "avx2-vnni"
  const char* requires_features;  // for users: "AVX2, FMA, F16C, AVX-VNNI"
  bool supported;                 // by this processor, operating system and build
  const char* refusal;            // where it is not: "which this processor lacks"
};

// Those of this architecture, best first; the last one is always generic. The first call asks Linux for the registers of amx,
// which it lends on request only, to the whole process and to what it forks.
const std::vector<Isa>& isas();

// name: one of the above, or "auto" (as are "" and nullptr): the one that KIMI_VL_CPU_ISA names, or the first supported one.
// Throws Error(bad_request, unsupported) that says which there are.
const Isa& choose_isa(const char* name);

}  // namespace kimi
