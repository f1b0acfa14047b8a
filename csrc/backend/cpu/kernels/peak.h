// What a processor could do at most: loops of nothing but multiply-adds, one for each kind of number. A benchmark runs them
// beside the real work, so that a figure comes with the share of the ceiling that it reaches.
#pragma once

namespace kimi::cpu {

struct PeakLoop {
  void (*run)();  // on one thread, some hundred microseconds; nullptr: the instruction set has nothing for such numbers
  double ops;     // operations of one call, a multiply-add counting as two
};

struct Peaks {
  PeakLoop int8, f32, bf16;
};

// isa: as for choose_isa (base/isa.h), with its errors.
Peaks peaks(const char* isa);

void fill_peaks_generic(Peaks* peaks);
void fill_peaks_avx2(Peaks* peaks);
void fill_peaks_avx2_vnni(Peaks* peaks);
void fill_peaks_avx512_vnni(Peaks* peaks);
void fill_peaks_avx512(Peaks* peaks);
void fill_peaks_amx(Peaks* peaks);

}  // namespace kimi::cpu
