// Weight rows unpacked in two ways, for test_lane_formats.cpp: as a format's own lanes do, and row by row as those of a format
// without any.
#pragma once
#include <cstdint>

struct Unpacked {
  int q[8][256];       // [row, element]
  float scale[8][16];  // [row, group]
  float min[8][16];
};
struct LaneTwin {
  const char* name;
  int block_bytes;
  void (*by_lanes)(const uint8_t* eight_blocks, Unpacked* out);
  void (*by_row)(const uint8_t* eight_blocks, Unpacked* out);
};
const LaneTwin* avx2_lane_twins(int* count);
