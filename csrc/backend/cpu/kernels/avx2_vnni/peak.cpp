#include "backend/cpu/kernels/peak.h"

#include "backend/cpu/kernels/loops/peak.h"

namespace kimi::cpu {
namespace {

#define KIMI_DOT_BYTES(n) "%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm" #n "\n"
KIMI_PEAK_LOOP(int8_loop, KIMI_DOT_BYTES)

}  // namespace

void fill_peaks_avx2_vnni(Peaks* peaks) {
  fill_peaks_avx2(peaks);
  peaks->int8 = {int8_loop, 2 * 32 * kPeakInstructions};
}

}  // namespace kimi::cpu
