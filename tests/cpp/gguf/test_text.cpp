#include <doctest/doctest.h>

#include <cstdint>

#include "gguf/text.h"

namespace {

// The twin: decodes a whole character to its number, and encodes that again.
bool slow_valid(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<uint8_t>(text[i]);
    const size_t n = lead < 0x80 ? 1 : (lead & 0xe0) == 0xc0 ? 2 : (lead & 0xf0) == 0xe0 ? 3 : (lead & 0xf8) == 0xf0 ? 4 : 0;
    if (n == 0 || i + n > text.size()) return false;
    uint32_t number = n == 1 ? lead : lead & (0x7fu >> n);
    for (size_t k = 1; k < n; ++k) {
      const auto next = static_cast<uint8_t>(text[i + k]);
      if ((next & 0xc0) != 0x80) return false;
      number = number << 6 | (next & 0x3f);
    }
    const size_t needed = number < 0x80 ? 1 : number < 0x800 ? 2 : number < 0x10000 ? 3 : 4;
    if (needed != n || number > 0x10ffff || (number >= 0xd800 && number <= 0xdfff)) return false;
    i += n;
  }
  return true;
}

}  // namespace

TEST_CASE("valid_utf8 agrees with its twin on all strings of 1 to 3 bytes and on the edges of 4") {
  int wrong = 0, valid = 0;
  const auto check = [&](const std::string& text) {
    const bool expected = slow_valid(text);
    wrong += kimi::gguf::valid_utf8(text) != expected;
    valid += expected;
  };
  for (int a = 0; a < 256; ++a) {
    check({static_cast<char>(a)});
    for (int b = 0; b < 256; ++b) {
      check({static_cast<char>(a), static_cast<char>(b)});
      if (a < 0xc0) continue;
      for (int c = 0x70; c < 256; ++c) {
        check({static_cast<char>(a), static_cast<char>(b), static_cast<char>(c)});
        for (const int d : {0, 0x7f, 0x80, 0xbf, 0xc0, 0xff})
          check({static_cast<char>(a), static_cast<char>(b), static_cast<char>(c), static_cast<char>(d)});
      }
    }
  }
  CHECK(wrong == 0);
  CHECK(valid > 10000);
  CHECK(kimi::gguf::valid_utf8(""));
}

TEST_CASE("quoted shows only printable ASCII and is bounded") {
  using kimi::gguf::quoted;
  CHECK(quoted("abc") == "'abc'");
  CHECK(quoted("it's\\") == "'it\\'s\\\\'");
  CHECK(quoted(std::string("\0\x1b[31m\xff\n", 8)) == "'\\x00\\x1b[31m\\xff\\x0a'");
  const std::string longer = quoted(std::string(1000, 'x'));
  CHECK(longer.size() == 85);
  CHECK(longer.substr(79) == "xx'...");
}
