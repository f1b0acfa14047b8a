// Typed access to metadata: a key of another type, or a number out of range, is an error that names file, key and offset.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/shard.h"

namespace kimi::gguf {

struct Lookup {
  const Metadata& metadata;
  const std::vector<uint32_t>& by_name;
  const std::string& path;

  // Absent key: nullopt.
  std::optional<uint64_t> get_uint(std::string_view key) const;
  std::optional<int64_t> get_int(std::string_view key) const;
  std::optional<double> get_float(std::string_view key) const;
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string_view> get_string(std::string_view key) const;
  std::optional<std::vector<std::string_view>> get_strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> get_ints(std::string_view key) const;
  std::optional<std::vector<double>> get_floats(std::string_view key) const;
};

}  // namespace kimi::gguf
