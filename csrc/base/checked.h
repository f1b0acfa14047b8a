// Arithmetic on sizes that come from outside: every overflow is reported, none wraps.
#pragma once
#include <cstdint>

namespace kimi {

[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_add_overflow(a, b, out); }
[[nodiscard]] inline bool checked_mul(uint64_t a, uint64_t b, uint64_t* out) { return !__builtin_mul_overflow(a, b, out); }

}  // namespace kimi
