#include "gguf/text.h"

#include <cstdint>

#include "base/error.h"

namespace kimi::gguf {

bool valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t k) { return k < text.size() ? static_cast<uint8_t>(text[k]) : uint8_t{0}; };
    const uint8_t lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const int n = lead >= 0xc2 && lead <= 0xdf ? 2 : (lead & 0xf0) == 0xe0 ? 3 : lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
    if (n == 0) return false;
    // The second byte is narrower for some leads: overlong forms, surrogates, beyond U+10FFFF.
    const uint8_t low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    const uint8_t high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (byte(i + 1) < low || byte(i + 1) > high) return false;
    for (int k = 2; k < n; ++k)
      if ((byte(i + k) & 0xc0) != 0x80) return false;
    i += static_cast<size_t>(n);
  }
  return true;
}

std::string quoted(std::string_view text) {
  constexpr size_t kShown = 80;
  std::string out = "'";
  for (const char c : text.substr(0, kShown)) {
    const auto u = static_cast<uint8_t>(c);
    if (u < 0x20 || u >= 0x7f) {
      out += format_string("\\x%02x", u);
    } else {
      if (c == '\'' || c == '\\') out += '\\';
      out += c;
    }
  }
  return out + (text.size() > kShown ? "'..." : "'");
}

}  // namespace kimi::gguf
