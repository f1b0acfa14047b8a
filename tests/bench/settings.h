// A benchmark's command line: words like threads=2, each into the variable that it names.
#pragma once
#include <cstdint>
#include <cstdio>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <type_traits>
#include <variant>

namespace kimi::bench {

using Settings = std::map<std::string, std::variant<std::string*, int*, int64_t*, double*, bool*>>;

// Words without "=" have to be among `known` and go into `chosen`. False, after saying why, for any other word and any value
// that cannot be read.
inline bool read_settings(int argc, char** argv, const Settings& settings, const std::set<std::string>& known = {},
                          std::set<std::string>* chosen = nullptr) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const size_t equals = word.find('=');
    if (equals == std::string::npos && known.count(word) != 0) {
      chosen->insert(word);
      continue;
    }
    const auto setting = settings.find(word.substr(0, equals));
    const std::string value = equals == std::string::npos ? "" : word.substr(equals + 1);
    const auto read = [&](auto* target) {
      if constexpr (std::is_same_v<decltype(target), std::string*>) {
        *target = value;
        return !value.empty();
      } else {
        std::istringstream in(value);
        return in >> *target && in.peek() == std::istringstream::traits_type::eof();
      }
    };
    if (setting == settings.end() || !std::visit(read, setting->second)) {
      std::fprintf(stderr, "%s: expected", word.c_str());
      for (const std::string& name : known) std::fprintf(stderr, " %s", name.c_str());
      for (const auto& [name, target] : settings) std::fprintf(stderr, " %s=…", name.c_str());
      std::fprintf(stderr, "\n");
      return false;
    }
  }
  return true;
}

}  // namespace kimi::bench
