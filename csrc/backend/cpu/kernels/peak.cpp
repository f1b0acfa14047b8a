#include "backend/cpu/kernels/peak.h"

#include "base/isa.h"

namespace kimi::cpu {

Peaks peaks(const char* isa) {
  Peaks result{};
  switch (choose_isa(isa).id) {
#if KIMI_AMX
    case IsaId::amx:
      fill_peaks_amx(&result);
      break;
#endif
#if KIMI_X86
    case IsaId::avx512:
      fill_peaks_avx512(&result);
      break;
    case IsaId::avx512_vnni:
      fill_peaks_avx512_vnni(&result);
      break;
    case IsaId::avx2_vnni:
      fill_peaks_avx2_vnni(&result);
      break;
    case IsaId::avx2:
      fill_peaks_avx2(&result);
      break;
#endif
    default:
      fill_peaks_generic(&result);
  }
  return result;
}

}  // namespace kimi::cpu
