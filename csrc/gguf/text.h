// Text from a file: is it UTF-8, and how to show it in a message.
#pragma once
#include <string>
#include <string_view>

namespace kimi::gguf {

bool valid_utf8(std::string_view text);  // RFC 3629: no surrogates, no overlong forms
// In quotes, at most 80 characters, everything but printable ASCII escaped: it may go to a terminal.
std::string quoted(std::string_view text);

}  // namespace kimi::gguf
