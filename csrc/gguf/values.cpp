#include "gguf/values.h"

#include <cstring>

#include "base/error.h"
#include "gguf/text.h"

namespace kimi::gguf {
namespace {

using ull = unsigned long long;
constexpr ErrorKind kBad = ErrorKind::bad_model_file;

template <typename T>
T load(const uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  return value;
}

bool is_integer(ValueType type) { return type <= ValueType::i32 || type == ValueType::u64 || type == ValueType::i64; }
bool is_float(ValueType type) { return type == ValueType::f32 || type == ValueType::f64; }

std::string type_text(const Value& value) {
  if (value.type != ValueType::array) return value_type_name(value.type);
  return std::string("an array of ") + value_type_name(value.element_type);
}

[[noreturn]] void fail_type(const Lookup& lookup, std::string_view key, const Value& value, const char* expected) {
  fail(kBad, "gguf.key_type",
       "%s: key %s (at byte %llu): is %s, expected %s; the file is damaged or not of the expected kind: convert it again",
       lookup.path.c_str(), quoted(key).c_str(), static_cast<ull>(value.file_offset), type_text(value).c_str(), expected);
}

[[noreturn]] void fail_range(const Lookup& lookup, std::string_view key, const Value& value, const std::string& got,
                             const char* expected) {
  fail(kBad, "gguf.key_value", "%s: key %s (at byte %llu): is %s, expected %s; the file is damaged: download or convert it again",
       lookup.path.c_str(), quoted(key).c_str(), static_cast<ull>(value.file_offset), got.c_str(), expected);
}

const Value* find(const Lookup& lookup, std::string_view key) { return find_key(lookup.metadata, lookup.by_name, key); }

// The integer at `bytes`: its value, or for a u64 beyond int64_t, false.
bool load_integer(ValueType type, const uint8_t* bytes, int64_t* out) {
  switch (type) {
    case ValueType::u8:
      *out = load<uint8_t>(bytes);
      return true;
    case ValueType::i8:
      *out = load<int8_t>(bytes);
      return true;
    case ValueType::u16:
      *out = load<uint16_t>(bytes);
      return true;
    case ValueType::i16:
      *out = load<int16_t>(bytes);
      return true;
    case ValueType::u32:
      *out = load<uint32_t>(bytes);
      return true;
    case ValueType::i32:
      *out = load<int32_t>(bytes);
      return true;
    default:
      *out = load<int64_t>(bytes);
      return type == ValueType::i64 || *out >= 0;
  }
}

double load_float(ValueType type, const uint8_t* bytes) {
  return type == ValueType::f32 ? static_cast<double>(load<float>(bytes)) : load<double>(bytes);
}

const Value* find_array(const Lookup& lookup, std::string_view key, bool (*accepts)(ValueType), const char* expected) {
  const Value* value = find(lookup, key);
  if (value && (value->type != ValueType::array || !accepts(value->element_type))) fail_type(lookup, key, *value, expected);
  return value;
}

}  // namespace

std::optional<int64_t> Lookup::get_int(std::string_view key) const {
  const Value* value = find(*this, key);
  if (!value) return std::nullopt;
  if (!is_integer(value->type)) fail_type(*this, key, *value, "an integer");
  int64_t number;
  if (!load_integer(value->type, value->data, &number)) {
    fail_range(*this, key, *value, std::to_string(static_cast<uint64_t>(number)), "less than 2^63");
  }
  return number;
}

std::optional<uint64_t> Lookup::get_uint(std::string_view key) const {
  const Value* value = find(*this, key);
  if (!value) return std::nullopt;
  if (!is_integer(value->type)) fail_type(*this, key, *value, "an integer");
  int64_t number;
  load_integer(value->type, value->data, &number);
  if (number < 0 && value->type != ValueType::u64) fail_range(*this, key, *value, std::to_string(number), "0 or more");
  return static_cast<uint64_t>(number);
}

std::optional<double> Lookup::get_float(std::string_view key) const {
  const Value* value = find(*this, key);
  if (!value) return std::nullopt;
  if (!is_float(value->type)) fail_type(*this, key, *value, "f32 or f64");
  return load_float(value->type, value->data);
}

std::optional<bool> Lookup::get_bool(std::string_view key) const {
  const Value* value = find(*this, key);
  if (!value) return std::nullopt;
  if (value->type != ValueType::boolean) fail_type(*this, key, *value, "bool");
  return *value->data != 0;
}

std::optional<std::string_view> Lookup::get_string(std::string_view key) const {
  const Value* value = find(*this, key);
  if (!value) return std::nullopt;
  if (value->type != ValueType::string) fail_type(*this, key, *value, "string");
  return std::string_view(reinterpret_cast<const char*>(value->data), value->size);
}

std::optional<std::vector<std::string_view>> Lookup::get_strings(std::string_view key) const {
  const Value* value = find_array(*this, key, [](ValueType type) { return type == ValueType::string; }, "an array of string");
  if (!value) return std::nullopt;
  std::vector<std::string_view> strings(value->count);
  // Walked and checked when the file was opened, but somebody may have written to it since.
  const uint8_t* bytes = value->data;
  uint64_t left = value->size;
  for (std::string_view& text : strings) {
    const uint64_t length = left >= 8 ? load<uint64_t>(bytes) : UINT64_MAX;
    if (left < 8 || length > left - 8) {
      fail(kBad, "gguf.changed",
           "%s: key %s (at byte %llu): the file was changed in place after it was opened: open it again, and replace model "
           "files by renaming a new file over the old one",
           path.c_str(), quoted(key).c_str(), static_cast<ull>(value->file_offset));
    }
    text = {reinterpret_cast<const char*>(bytes + 8), length};
    bytes += 8 + length;
    left -= 8 + length;
  }
  return strings;
}

std::optional<std::vector<int64_t>> Lookup::get_ints(std::string_view key) const {
  const Value* value = find_array(*this, key, is_integer, "an array of integers");
  if (!value) return std::nullopt;
  std::vector<int64_t> numbers(value->count);
  const size_t size = scalar_size(value->element_type);
  for (size_t i = 0; i < numbers.size(); ++i) {
    if (load_integer(value->element_type, value->data + i * size, &numbers[i])) continue;
    fail_range(*this, key, *value, format_string("%llu in element %zu", static_cast<ull>(numbers[i]), i), "less than 2^63");
  }
  return numbers;
}

std::optional<std::vector<double>> Lookup::get_floats(std::string_view key) const {
  const Value* value = find_array(*this, key, is_float, "an array of f32 or f64");
  if (!value) return std::nullopt;
  std::vector<double> numbers(value->count);
  const size_t size = scalar_size(value->element_type);
  for (size_t i = 0; i < numbers.size(); ++i) numbers[i] = load_float(value->element_type, value->data + i * size);
  return numbers;
}

}  // namespace kimi::gguf
