#include "f16_cases.h"

TEST_CASE("every half converts to float exactly") { check_f16_to_f32(); }
TEST_CASE("floats round to the nearest half, ties to even") { check_f32_to_f16(); }
TEST_CASE("bfloat16 converts exactly and rounds to nearest even") { check_bf16(); }
