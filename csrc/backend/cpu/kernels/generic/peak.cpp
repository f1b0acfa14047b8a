// What plain C++ comes to with the baseline of the architecture: products of numbers that lie in the first cache.
#include "backend/cpu/kernels/peak.h"

#include <cstdint>

namespace kimi::cpu {
namespace {

constexpr int kElems = 2048, kRounds = 1000;
constexpr double kOps = 2.0 * kElems * kRounds;

// The compiler must take the memory behind p for changed.
inline void touch(void* p) { asm volatile("" : : "r"(p) : "memory"); }

void int8_loop() {
  alignas(64) int8_t a[kElems] = {}, b[kElems] = {};
  for (int round = 0; round < kRounds; ++round) {
    touch(a);
    touch(b);
    int32_t sum = 0;
    for (int i = 0; i < kElems; ++i) sum += int32_t{a[i]} * b[i];
    touch(&sum);
  }
}

void f32_loop() {
  constexpr int kLanes = 32;
  alignas(64) float a[kElems] = {}, b[kElems] = {}, sums[kLanes] = {};
  for (int round = 0; round < kRounds; ++round) {
    touch(a);
    touch(b);
    float local[kLanes] = {};
    for (int i = 0; i < kElems; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) local[lane] += a[i + lane] * b[i + lane];
    for (int lane = 0; lane < kLanes; ++lane) sums[lane] += local[lane];
    touch(sums);
  }
}

}  // namespace

void fill_peaks_generic(Peaks* peaks) {
  peaks->int8 = {int8_loop, kOps};
  peaks->f32 = {f32_loop, kOps};
}

}  // namespace kimi::cpu
