#include "backend/cpu/kernels/peak.h"

#include "backend/cpu/kernels/loops/peak.h"

namespace kimi::cpu {
namespace {

#define KIMI_DOT_BYTES(n) "vpdpbusd %%zmm0, %%zmm0, %%zmm" #n "\n"
#define KIMI_FMA(n) "vfmadd231ps %%zmm0, %%zmm0, %%zmm" #n "\n"
KIMI_PEAK_LOOP(int8_loop, KIMI_DOT_BYTES)
KIMI_PEAK_LOOP(f32_loop, KIMI_FMA)

}  // namespace

void fill_peaks_avx512_vnni(Peaks* peaks) {
  peaks->int8 = {int8_loop, 2 * 64 * kPeakInstructions};
  peaks->f32 = {f32_loop, 2 * 16 * kPeakInstructions};
}

}  // namespace kimi::cpu
