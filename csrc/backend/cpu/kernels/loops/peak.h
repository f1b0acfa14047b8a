// A loop of one x86 instruction on twelve independent registers: enough chains to hide the latency of any multiply-add.
// Instruction and registers are explicit, or the compiler would rearrange them. Register 0 is the source, all zeros.
#pragma once
#include <stdint.h>

#define KIMI_PEAK_EACH(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#define KIMI_PEAK_ZERO(n) "vpxor %%xmm" #n ", %%xmm" #n ", %%xmm" #n "\n"
// INSTRUCTION(n): the text of the instruction that adds to register n.
#define KIMI_PEAK_LOOP(name, INSTRUCTION)                                                                                      \
  void name() {                                                                                                                \
    int64_t left = kPeakLoops;                                                                                                 \
    asm volatile(KIMI_PEAK_ZERO(0) KIMI_PEAK_EACH(KIMI_PEAK_ZERO) "1:\n" KIMI_PEAK_EACH(INSTRUCTION) "dec %0\njnz 1b\n"      \
                     "vzeroupper\n"                                                                                          \
                 : "+r"(left)                                                                                                \
                 :                                                                                                           \
                 : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",   \
                   "xmm12"); \
  }

namespace kimi::cpu {
namespace {

constexpr int64_t kPeakLoops = 50000;
constexpr double kPeakInstructions = 12.0 * kPeakLoops;

}  // namespace
}  // namespace kimi::cpu
