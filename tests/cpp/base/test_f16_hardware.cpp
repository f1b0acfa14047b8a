// Compiled with -mf16c where there is such a thing: only this check may run there, and only on a processor that has it.
#include "f16_cases.h"

TEST_CASE("every half converts to float exactly, in hardware") {
#ifdef __F16C__
  if (!__builtin_cpu_supports("f16c")) return;
#endif
  check_f16_to_f32();
}

TEST_CASE("the other conversions do not depend on the instruction set") {
#ifdef __F16C__
  if (!__builtin_cpu_supports("f16c")) return;
#endif
  check_f32_to_f16();
  check_bf16();
}
