#include <doctest/doctest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "expect_error.h"

using namespace kimi;

namespace {

// Resident pages of [block, block + bytes); -1: not mapped.
long resident(const void* block, size_t bytes) {
  std::vector<unsigned char> pages(bytes / static_cast<size_t>(sysconf(_SC_PAGESIZE)));
  if (::mincore(const_cast<void*>(block), bytes, pages.data()) != 0) return -1;
  long n = 0;
  for (const unsigned char page : pages) n += page & 1;
  return n;
}

}  // namespace

TEST_CASE("a buffer is zeroed and aligned, on the heap as in pages of its own") {
  for (const size_t bytes :
       {size_t{1}, size_t{63}, size_t{4096}, kLargePage - 64, kLargePage - 63, kLargePage, kLargePage * 3 + 1}) {
    AlignedBuffer<uint8_t> buffer(bytes);
    CHECK(buffer.size() == bytes);
    CHECK(reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0);
    size_t sum = 0;
    for (size_t i = 0; i < bytes; ++i) sum += std::exchange(buffer[i], uint8_t{255});
    CHECK(sum == 0);
  }
}

TEST_CASE("growing past a large page zeroes, shrinking keeps what was written") {
  AlignedBuffer<float> buffer(100);
  buffer[99] = 1;
  buffer.resize(kLargePage);
  CHECK(buffer[99] == 0);
  buffer[50] = 2;
  buffer.resize(60);
  CHECK(buffer[50] == 2);
  AlignedBuffer<float> other = std::move(buffer);
  CHECK(buffer.data() == nullptr);
  CHECK(other[50] == 2);
  buffer = std::move(other);
  CHECK(buffer[50] == 2);
}

TEST_CASE("pages are taken when they are written, and given back at once") {
  constexpr size_t kBytes = 16u << 20;
  AlignedBuffer<uint8_t> buffer(kBytes);
  const uint8_t* block = buffer.data();
  CHECK(resident(block, kBytes) == 0);
  for (size_t i = 0; i < kBytes; i += 4096) buffer[i] = 1;
  CHECK(resident(block, kBytes) == static_cast<long>(kBytes) / sysconf(_SC_PAGESIZE));
  buffer.release();
  CHECK(resident(block, kBytes) == -1);
}

TEST_CASE("memory that is not there is a typed error, and the buffer is empty") {
  AlignedBuffer<uint8_t> buffer(10);
  expect_error(ErrorKind::out_of_memory, "memory.allocation", [&] { buffer.resize(size_t{1} << 60); });
  CHECK(buffer.data() == nullptr);
  CHECK(buffer.size() == 0);
  buffer.resize(10);
  CHECK(buffer[9] == 0);
}
