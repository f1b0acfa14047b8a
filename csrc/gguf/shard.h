// One file, parsed: what the header says, checked, with views into the bytes it came from.
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "gguf/cursor.h"
#include "gguf/gguf.h"

namespace kimi::gguf {

using Metadata = std::vector<std::pair<std::string, Value>>;

struct Shard {
  uint32_t version = 0;
  Metadata metadata;
  std::vector<uint32_t> keys_by_name;  // indices into metadata, sorted
  std::vector<TensorInfo> tensors;
  std::vector<std::string> warnings;
};

// `bytes` must outlive the result. `path` is only for messages.
Shard parse_shard(const uint8_t* bytes, uint64_t size, const std::string& path, Budget& budget);

// The parts of parse_shard.
void read_metadata(Cursor& cursor, uint64_t n_keys, Shard& shard);                        // metadata.cpp
void read_tensors(Cursor& cursor, uint64_t n_tensors, uint64_t alignment, Shard& shard);  // tensors.cpp

const Value* find_key(const Metadata& metadata, const std::vector<uint32_t>& by_name, std::string_view key);
size_t scalar_size(ValueType type);  // bytes; 0 for string and array

}  // namespace kimi::gguf
