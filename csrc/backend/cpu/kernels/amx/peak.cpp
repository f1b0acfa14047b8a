#include "backend/cpu/kernels/peak.h"

#include "backend/cpu/kernels/amx/tiles.h"

namespace kimi::cpu {
namespace {

constexpr int kLoops = 5000;

void bf16_loop() {
  amx::Tiles tiles;  // all zeros
  tiles.shape(amx::kRows);
  for (int i = 0; i < kLoops; ++i) {
    amx::multiply_tiles<0, 4, 6>();
    amx::multiply_tiles<1, 4, 7>();
    amx::multiply_tiles<2, 5, 6>();
    amx::multiply_tiles<3, 5, 7>();
  }
}

}  // namespace

void fill_peaks_amx(Peaks* peaks) {
  fill_peaks_avx512(peaks);
  peaks->bf16 = {bf16_loop, 2.0 * amx::kRows * amx::kColumns * amx::kDepth * kLoops};
}

}  // namespace kimi::cpu
