// A format needs no lanes of its own: those that exist are an extra, and agree bit by bit with unpacking row by row.
#ifdef __x86_64__
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "doctest/doctest.h"
#include "lane_twins.h"

TEST_CASE("lanes of a format unpack what its rows unpack one by one") {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("f16c")) {
    MESSAGE("skipped: this processor has no AVX2");
    return;
  }
  int count = 0;
  const LaneTwin* twins = avx2_lane_twins(&count);
  REQUIRE(count > 13);
  std::mt19937 random(7);
  for (int i = 0; i < count; ++i) {
    CAPTURE(std::string(twins[i].name));
    std::vector<uint8_t> blocks(static_cast<size_t>(8 * twins[i].block_bytes) + 32);  // lanes read 16 bytes at a time
    for (int round = 0; round < 50; ++round) {
      for (uint8_t& byte : blocks) byte = static_cast<uint8_t>(random());
      const auto lanes = std::make_unique<Unpacked>(), rows = std::make_unique<Unpacked>();
      std::memset(lanes.get(), 0, sizeof(Unpacked));
      std::memset(rows.get(), 0, sizeof(Unpacked));
      twins[i].by_lanes(blocks.data(), lanes.get());
      twins[i].by_row(blocks.data(), rows.get());
      CHECK(std::memcmp(lanes->q, rows->q, sizeof(rows->q)) == 0);
      for (int row = 0; row < 8; ++row) {
        for (int g = 0; g < 16; ++g) {
          const float a = lanes->scale[row][g], b = rows->scale[row][g], c = lanes->min[row][g], d = rows->min[row][g];
          CHECK((std::memcmp(&a, &b, 4) == 0 || (a != a && b != b)));
          CHECK((std::memcmp(&c, &d, 4) == 0 || (c != c && d != d)));
        }
      }
    }
  }
}
#endif
