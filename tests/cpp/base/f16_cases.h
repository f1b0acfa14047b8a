// Exhaustive checks of f16.h against slow twins that use only integers, ldexp and comparison. Included twice: with and
// without the instruction that converts in hardware.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "base/f16.h"

namespace {

// ---- slow twins: from the definition of the formats --------------------------------------------------------------------

double slow_f16_value(uint16_t h) {  // of a finite half
  const int exponent = (h >> 10) & 31, fraction = h & 1023;
  const double magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (h & 0x8000) ? -magnitude : magnitude;
}

// The nearest of all halves, ties to the even one; beyond the middle of 65504 and 65536: infinity.
uint16_t slow_f16_from_f32(float value) {
  if (std::isnan(value)) return 0x7e00;
  const auto sign = static_cast<uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return sign | 0x7c00;
  uint16_t low = 0, high = 0x7bff;  // positive halves are ordered like their bits
  while (low < high) {              // the largest half that is not above
    const auto middle = static_cast<uint16_t>((low + high + 1) / 2);
    if (slow_f16_value(middle) <= magnitude) {
      low = middle;
    } else {
      high = static_cast<uint16_t>(middle - 1);
    }
  }
  if (low == 0x7bff) return sign | low;
  const double below = magnitude - slow_f16_value(low), above = slow_f16_value(static_cast<uint16_t>(low + 1)) - magnitude;
  const bool up = above < below || (above == below && (low & 1));
  return static_cast<uint16_t>(sign | (low + up));
}

uint16_t slow_bf16_from_f32(float value) {
  const uint32_t bits = kimi::f32_to_bits(value), low = bits & 0xffff;
  uint32_t high = bits >> 16;
  if (low > 0x8000 || (low == 0x8000 && (high & 1))) ++high;
  return static_cast<uint16_t>(high);
}

bool is_nan_f16(uint16_t h) { return (h & 0x7c00) == 0x7c00 && (h & 0x3ff) != 0; }
bool is_nan_bf16(uint16_t h) { return (h & 0x7f80) == 0x7f80 && (h & 0x7f) != 0; }

// Every half, every middle of two neighbours and the floats next to both, and floats of random bits.
std::vector<float> floats_to_round() {
  std::vector<float> values;
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const auto exact = static_cast<float>(slow_f16_value(static_cast<uint16_t>(h)));
    const auto next = h == 0x7bff ? 65536.0f : static_cast<float>(slow_f16_value(static_cast<uint16_t>(h + 1)));
    for (const float v : {exact, (exact + next) / 2}) {
      for (const float w : {v, std::nextafter(v, 0.0f), std::nextafter(v, INFINITY)}) {
        values.push_back(w);
        values.push_back(-w);
      }
    }
  }
  std::mt19937 random(1);
  for (int i = 0; i < 300000; ++i) values.push_back(kimi::f32_from_bits(static_cast<uint32_t>(random())));
  for (const float v : {INFINITY, -INFINITY, NAN, -NAN, 0.0f, -0.0f, 1e-45f, 3.4e38f}) values.push_back(v);
  return values;
}

void check_f16_to_f32() {
  int wrong = 0;
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto h = static_cast<uint16_t>(i);
    const float got = kimi::f32_from_f16(h);
    bool same;
    if (is_nan_f16(h)) {
      same = std::isnan(got);
    } else if ((h & 0x7fff) == 0x7c00) {
      same = got == ((h & 0x8000) ? -INFINITY : INFINITY);
    } else {
      same = kimi::f32_to_bits(got) == kimi::f32_to_bits(static_cast<float>(slow_f16_value(h)));  // -0 too
    }
    if (!same && ++wrong < 10) MESSAGE("half " << i << " became " << got);
  }
  CHECK(wrong == 0);
}

void check_f32_to_f16() {
  int wrong = 0;
  for (const float value : floats_to_round()) {
    const uint16_t got = kimi::f16_from_f32(value), expected = slow_f16_from_f32(value);
    const bool same = std::isnan(value) ? is_nan_f16(got) : got == expected;
    if (!same && ++wrong < 10) MESSAGE(value << " became half " << got << ", expected " << expected);
  }
  CHECK(wrong == 0);
}

void check_bf16() {
  int wrong = 0;
  for (uint32_t i = 0; i < 65536; ++i) {  // exact both ways
    const float value = kimi::f32_from_bf16(static_cast<uint16_t>(i));
    const uint16_t back = kimi::bf16_from_f32(value);
    const bool same = kimi::f32_to_bits(value) == i << 16 && (std::isnan(value) ? is_nan_bf16(back) : back == i);
    // every way to round: the middle, next to it, and the ends
    bool rounds = true;
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float above = kimi::f32_from_bits(i << 16 | low);
      const uint16_t got = kimi::bf16_from_f32(above);
      rounds = rounds && (std::isnan(above) ? is_nan_bf16(got) : got == slow_bf16_from_f32(above));
    }
    if (!(same && rounds) && ++wrong < 10) MESSAGE("bfloat16 " << i);
  }
  CHECK(wrong == 0);
}

}  // namespace
