// Without VNNI the widest integer instruction is vpmaddubsw, whose sums of two products stay exact for weights of up to 7 bits.
#include "backend/cpu/kernels/peak.h"

#include "backend/cpu/kernels/loops/peak.h"

namespace kimi::cpu {
namespace {

#define KIMI_MADD(n) "vpmaddubsw %%ymm0, %%ymm" #n ", %%ymm" #n "\n"
#define KIMI_FMA(n) "vfmadd231ps %%ymm0, %%ymm0, %%ymm" #n "\n"
KIMI_PEAK_LOOP(int8_loop, KIMI_MADD)
KIMI_PEAK_LOOP(f32_loop, KIMI_FMA)

}  // namespace

void fill_peaks_avx2(Peaks* peaks) {
  peaks->int8 = {int8_loop, 2 * 32 * kPeakInstructions};
  peaks->f32 = {f32_loop, 2 * 8 * kPeakInstructions};
}

}  // namespace kimi::cpu
