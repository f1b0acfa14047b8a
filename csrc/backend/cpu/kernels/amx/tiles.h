// The tile registers of a thread (AMX), as this folder uses them: sums of 32 rows by 32 columns in tiles 0 to 3, 32 rows of the
// left operand in tiles 4 and 5, 32 columns of the right one in tiles 6 and 7.
//
// Instructions are in assembler, because GCC's intrinsics do not say that they read and write memory.
#pragma once
#include <stdint.h>

#include "base/f16.h"

namespace kimi::cpu::amx {
namespace {

constexpr int64_t kRows = 32, kColumns = 32;  // of a block of sums
constexpr int64_t kDepth = 32;                // numbers that one instruction multiplies and adds

template <int tile>
KIMI_INLINE void load_tile(const void* from, int64_t row_bytes) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile) : "memory");
}
template <int tile>
KIMI_INLINE void store_tile(void* to, int64_t row_bytes) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
}
template <int tile>
KIMI_INLINE void clear_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(tile));
}
// sums += left * right
template <int sums, int left, int right>
KIMI_INLINE void multiply_tiles() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
}

// The tiles of this thread while it computes one product. They are configured at the first use and released at the end, so
// that nothing else in the process meets them.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() { __asm__ volatile("tilerelease" ::: "memory"); }

  // Blocks of `rows` rows, 1 to kRows; of up to 16, the lower tiles (2, 3 and 5) do not exist. Loses the sums when it changes.
  void shape(int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct alignas(64) Config {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto upper = static_cast<uint8_t>(rows < 16 ? rows : 16), lower = static_cast<uint8_t>(rows - upper);
    const uint8_t of_tile[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
    for (int tile = 0; tile < 8; ++tile) {
      config.rows[tile] = of_tile[tile];
      config.row_bytes[tile] = of_tile[tile] ? 64 : 0;
    }
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
  }

 private:
  int64_t rows_ = 0;
};

}  // namespace
}  // namespace kimi::cpu::amx
