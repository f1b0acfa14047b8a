#include "backend/cpu/kernels/peak.h"

#include "backend/cpu/kernels/loops/peak.h"

namespace kimi::cpu {
namespace {

#define KIMI_DOT_BF16(n) "vdpbf16ps %%zmm0, %%zmm0, %%zmm" #n "\n"
KIMI_PEAK_LOOP(bf16_loop, KIMI_DOT_BF16)

}  // namespace

void fill_peaks_avx512(Peaks* peaks) {
  fill_peaks_avx512_vnni(peaks);
  peaks->bf16 = {bf16_loop, 2 * 32 * kPeakInstructions};
}

}  // namespace kimi::cpu
