#include "backend/cpu/kernels/peak.h"

#include <cstring>

#include "backend/cpu/kernels/kernel_table.h"

namespace kimi::cpu {

Peaks peaks(const char* isa) {
  const char* name = select_kernels(isa).name;
  Peaks result{};
#if KIMI_X86
  if (std::strcmp(name, "avx512") == 0) {
    fill_peaks_avx512(&result);
    return result;
  }
  if (std::strcmp(name, "avx2") == 0) {
    fill_peaks_avx2(&result);
    return result;
  }
#endif
  static_cast<void>(name);
  fill_peaks_generic(&result);
  return result;
}

}  // namespace kimi::cpu
