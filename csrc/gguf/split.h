// Split files: what the keys split.* and the names PREFIX-00001-of-00003.gguf say, and whether the parts belong together.
#pragma once
#include <cstdint>
#include <string>

#include "gguf/shard.h"

namespace kimi::gguf {

struct Split {
  uint64_t number = 0;     // 0-based
  uint64_t count = 1;      // 1: not split
  uint64_t n_tensors = 0;  // of all parts
};

// Throws Error(bad_model_file, "gguf.split*").
Split read_split(const Shard& shard, const std::string& path);
// The path of part `number`, derived from the path of the part that was named.
std::string part_path(const std::string& path, const Split& split, uint64_t number);
// Same split, same metadata where both have it.
void check_same_model(const Shard& first, const std::string& first_path, const Shard& part, const std::string& part_path);

}  // namespace kimi::gguf
