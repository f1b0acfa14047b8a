#include <doctest/doctest.h>

#include <initializer_list>

#include "base/checked.h"

// The twin: the same in 128 bits.
using Wide = unsigned __int128;

TEST_CASE("checked arithmetic agrees with 128-bit arithmetic") {
  const uint64_t values[] = {0,
                             1,
                             2,
                             3,
                             7,
                             1ull << 16,
                             (1ull << 32) - 1,
                             1ull << 32,
                             (1ull << 32) + 1,
                             1ull << 61,
                             1ull << 62,
                             1ull << 63,
                             UINT64_MAX - 1,
                             UINT64_MAX,
                             0x5555555555555555ull,
                             0xaaaaaaaaaaaaaaabull};
  int overflows = 0;
  for (const uint64_t a : values) {
    for (const uint64_t b : values) {
      uint64_t out = 0;
      const Wide sum = static_cast<Wide>(a) + b, product = static_cast<Wide>(a) * b;
      const bool sum_fits = sum <= UINT64_MAX, product_fits = product <= UINT64_MAX;
      CHECK(kimi::checked_add(a, b, &out) == sum_fits);
      if (sum_fits) CHECK(out == static_cast<uint64_t>(sum));
      CHECK(kimi::checked_mul(a, b, &out) == product_fits);
      if (product_fits) CHECK(out == static_cast<uint64_t>(product));
      overflows += !sum_fits + !product_fits;
    }
  }
  CHECK(overflows > 50);
}
