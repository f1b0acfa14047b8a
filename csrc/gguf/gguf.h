// The container: metadata and tensor directory of a GGUF file (or all shards of a split one), over a read-only mapping.
// Input is hostile: every size is checked before it is used, nothing is allocated that the file has not paid for in bytes.
// Refuses to know what a model is.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/mapped_file.h"
#include "quant/format.h"

namespace kimi::gguf {

enum class ValueType : uint32_t { u8 = 0, i8, u16, i16, u32, i32, f32, boolean, string, array, u64, i64, f64 };
const char* value_type_name(ValueType type);

// A metadata value; strings and arrays are views into the mapping.
struct Value {
  ValueType type;
  ValueType element_type;  // of an array
  uint64_t count = 1;      // elements of an array
  const uint8_t* data;     // first byte of the scalar, of the string's characters, or of the array's first element
  uint64_t size;           // bytes at `data`
  uint64_t file_offset;    // of the value, for messages
};

struct TensorInfo {
  std::string name;
  int n_dims = 0;
  int64_t ne[4] = {1, 1, 1, 1};  // ne[0] is contiguous
  uint32_t type_id = 0;
  const quant::Format* format = nullptr;  // nullptr: a type we cannot read (the file still opens, for `inspect`)
  const uint8_t* data = nullptr;          // in the mapping of its shard; nullptr when format is nullptr
  uint64_t n_bytes = 0;                   // in the file; known also when format is nullptr
  uint64_t file_offset = 0;               // absolute, in its shard
  int shard = 0;
  uint64_t n_elems() const { return static_cast<uint64_t>(ne[0]) * ne[1] * ne[2] * ne[3]; }
};

class File {
 public:
  // Opens `path`; of a split file, any shard may be named and all are opened. Throws Error(bad_model_file, "gguf.*").
  static File open(const std::string& path);
  // The same from borrowed memory, which must outlive the result: one shard, no system calls. For tests and fuzzing.
  static File from_memory(const uint8_t* data, uint64_t size, const std::string& name);
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;
  ~File();

  const std::string& path() const;
  uint32_t version() const;
  int n_shards() const;
  uint64_t file_bytes() const;                       // of all shards
  const std::vector<std::string>& warnings() const;  // legal but odd: trailing bytes, unknown keys under kimi_vl., …

  const std::vector<std::pair<std::string, Value>>& metadata() const;  // of shard 0, in file order
  const Value* find_key(std::string_view key) const;
  const std::vector<TensorInfo>& tensors() const;  // of all shards, in file order
  const TensorInfo* find_tensor(std::string_view name) const;

  // Typed access. Absent key: nullopt. Present with another type: Error "gguf.key_type" that names file, key, offset, both types.
  std::optional<uint64_t> get_uint(std::string_view key) const;  // any integer type, not negative
  std::optional<int64_t> get_int(std::string_view key) const;
  std::optional<double> get_float(std::string_view key) const;  // f32 or f64
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string_view> get_string(std::string_view key) const;
  std::optional<std::vector<std::string_view>> get_strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> get_ints(std::string_view key) const;   // array of any integer type
  std::optional<std::vector<double>> get_floats(std::string_view key) const;  // array of f32 or f64

 private:
  struct Impl;
  explicit File(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kimi::gguf
