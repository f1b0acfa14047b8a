// Zeroed memory straight from the system: untouched pages cost nothing, freed ones go back at once, and the system is asked
// for large pages.
#pragma once
#include <cstddef>

namespace kimi {

constexpr size_t kLargePage = 2u << 20;  // smaller blocks belong on the heap

void* take_pages(size_t bytes) noexcept;              // nullptr: the system refused
void give_pages(void* block, size_t bytes) noexcept;  // the bytes that were taken; nullptr is allowed

}  // namespace kimi
