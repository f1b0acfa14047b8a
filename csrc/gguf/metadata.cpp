// The key-value section: walked once, values stay where they are.
#include <algorithm>
#include <numeric>

#include "base/checked.h"
#include "base/error.h"
#include "gguf/shard.h"
#include "gguf/text.h"

namespace kimi::gguf {
namespace {

using ull = unsigned long long;
constexpr uint32_t kValueTypes = 13;

std::string_view read_key(Cursor& cursor) {
  const uint64_t offset = cursor.position(), length = cursor.read<uint64_t>("length of the key");
  if (length == 0 || length > limits::kKeyBytes) {
    cursor.fail_at("gguf.key_length", offset,
                   format_string("the key is %llu bytes long, allowed are 1 to %llu; %s", static_cast<ull>(length),
                                 static_cast<ull>(limits::kKeyBytes), kDamaged));
  }
  const std::string_view key(reinterpret_cast<const char*>(cursor.take(length, "key")), length);
  if (key.find('\0') != key.npos || !valid_utf8(key)) {
    cursor.fail_at("gguf.key_text", offset + 8,
                   "the key is " + quoted(key) + ", expected UTF-8 text without NUL; " + std::string(kDamaged));
  }
  if (length > cursor.budget().name_bytes) {
    cursor.fail_at(
        "gguf.header_size", offset,
        format_string("keys and tensor names take more than %llu MiB; %s", static_cast<ull>(limits::kNameBytes >> 20), kDamaged));
  }
  cursor.budget().name_bytes -= length;
  return key;
}

ValueType read_type(Cursor& cursor, const char* field) {
  const uint64_t offset = cursor.position();
  const uint32_t type = cursor.read<uint32_t>(field);
  if (type >= kValueTypes) {
    cursor.fail_at("gguf.value_type", offset,
                   format_string("the %s is %u, allowed are 0 to %u; the file is damaged or newer than this reader: "
                                 "download it again, or update kimi_vl_cpp",
                                 field, type, kValueTypes - 1));
  }
  return static_cast<ValueType>(type);
}

// Leaves the cursor behind the characters and returns where they are.
std::string_view read_string(Cursor& cursor) {
  const uint64_t offset = cursor.position(), length = cursor.read<uint64_t>("length of a string");
  if (length > limits::kStringBytes) {
    cursor.fail_at("gguf.string_length", offset,
                   format_string("a string is %llu bytes long, allowed are %llu; %s", static_cast<ull>(length),
                                 static_cast<ull>(limits::kStringBytes), kDamaged));
  }
  return {reinterpret_cast<const char*>(cursor.take(length, "string")), length};
}

void check_bools(const Cursor& cursor, const Value& value) {
  for (uint64_t i = 0; i < value.size; ++i) {
    if (value.data[i] > 1) {
      cursor.fail_at("gguf.bool", static_cast<uint64_t>(value.data + i - cursor.data()),
                     format_string("a bool is %u, allowed are 0 and 1; %s", value.data[i], kDamaged));
    }
  }
}

void read_array(Cursor& cursor, Value& value) {
  const uint64_t offset = cursor.position();
  value.element_type = read_type(cursor, "type of the array's elements");
  if (value.element_type == ValueType::array) {
    cursor.fail_at("gguf.array_nested", offset, std::string("an array of arrays; no key of a model needs one, so ") + kDamaged);
  }
  const uint64_t count_offset = cursor.position();
  value.count = cursor.read<uint64_t>("length of the array");
  if (value.count > limits::kArrayElems) {
    cursor.fail_at("gguf.array_length", count_offset,
                   format_string("an array of %llu elements, allowed are %llu; %s", static_cast<ull>(value.count),
                                 static_cast<ull>(limits::kArrayElems), kDamaged));
  }
  const uint64_t begin = cursor.position();
  if (const size_t element = scalar_size(value.element_type)) {
    value.data = cursor.take(value.count * element, "array");  // at most 2^24 * 8
  } else {
    value.data = cursor.data() + begin;
    // Each has at least its length: a count that the file has no bytes for ends here, before the walk.
    if (value.count > cursor.remaining() / 8) cursor.fail_truncated(value.count * 8, "array of strings");
    for (uint64_t i = 0; i < value.count; ++i) read_string(cursor);
  }
  value.size = cursor.position() - begin;
  if (value.element_type == ValueType::boolean) check_bools(cursor, value);
}

Value read_value(Cursor& cursor) {
  Value value = {};
  value.type = read_type(cursor, "value type");
  value.element_type = value.type;
  value.count = 1;
  value.file_offset = cursor.position();
  if (value.type == ValueType::array) {
    read_array(cursor, value);
  } else if (value.type == ValueType::string) {
    const std::string_view text = read_string(cursor);
    value.data = reinterpret_cast<const uint8_t*>(text.data());
    value.size = text.size();
  } else {
    value.size = scalar_size(value.type);
    value.data = cursor.take(value.size, "value");
    if (value.type == ValueType::boolean) check_bools(cursor, value);
  }
  return value;
}

}  // namespace

const char* value_type_name(ValueType type) {
  static constexpr const char* kNames[kValueTypes] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                                      "bool", "string", "array", "u64", "i64", "f64"};
  return static_cast<uint32_t>(type) < kValueTypes ? kNames[static_cast<uint32_t>(type)] : "unknown";
}

size_t scalar_size(ValueType type) {
  static constexpr uint8_t kSizes[kValueTypes] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
  return kSizes[static_cast<uint32_t>(type)];
}

const Value* find_key(const Metadata& metadata, const std::vector<uint32_t>& by_name, std::string_view key) {
  const auto it = std::lower_bound(by_name.begin(), by_name.end(), key,
                                   [&](uint32_t i, std::string_view k) { return std::string_view(metadata[i].first) < k; });
  return it != by_name.end() && metadata[*it].first == key ? &metadata[*it].second : nullptr;
}

void read_metadata(Cursor& cursor, uint64_t n_keys, Shard& shard) {
  shard.metadata.reserve(n_keys);  // at most limits::kKeys, and the file has bytes for them
  for (uint64_t i = 0; i < n_keys; ++i) {
    cursor.enter("key", i, n_keys);
    const std::string_view key = read_key(cursor);
    cursor.set_name(key);
    shard.metadata.emplace_back(std::string(key), read_value(cursor));
  }
  // Sorted rather than hashed: a file cannot choose keys that make it slow.
  shard.keys_by_name.resize(n_keys);
  std::iota(shard.keys_by_name.begin(), shard.keys_by_name.end(), 0u);
  std::sort(shard.keys_by_name.begin(), shard.keys_by_name.end(),
            [&](uint32_t a, uint32_t b) { return shard.metadata[a].first < shard.metadata[b].first; });
  for (size_t i = 1; i < n_keys; ++i) {
    const auto& a = shard.metadata[shard.keys_by_name[i - 1]];
    const auto& b = shard.metadata[shard.keys_by_name[i]];
    if (a.first != b.first) continue;
    cursor.enter("key");
    cursor.set_name(a.first);
    const uint64_t first = std::min(a.second.file_offset, b.second.file_offset),
                   second = std::max(a.second.file_offset, b.second.file_offset);
    cursor.fail_at("gguf.duplicate_key", second,
                   format_string("appears twice, first with its value at byte %llu; %s", static_cast<ull>(first), kDamaged));
  }
}

}  // namespace kimi::gguf
