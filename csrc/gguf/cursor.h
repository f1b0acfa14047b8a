// A position in the header of one file. Every read is checked against the end of the file and against the budget that all
// shards share; a failed check says which part of the header wanted what, and where.
#pragma once
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "gguf/limits.h"

namespace kimi::gguf {

// What all shards together may still take.
struct Budget {
  uint64_t header_bytes = limits::kHeaderBytes;
  uint64_t name_bytes = limits::kNameBytes;
  uint64_t tensors = limits::kTensors;
};

class Cursor {
 public:
  Cursor(const uint8_t* data, uint64_t size, const std::string& path, Budget& budget)
      : data_(data), size_(size), path_(path), budget_(budget) {}

  // What is being read, for messages: "key 3 of 40" until its name is known.
  void enter(const char* noun, uint64_t index, uint64_t count) {
    noun_ = noun;
    index_ = index;
    count_ = count;
    name_ = {};
  }
  void enter(const char* noun) { enter(noun, 0, 0); }
  void set_name(std::string_view name) { name_ = name; }
  std::string where() const;  // "key 'general.alignment'"

  uint64_t position() const { return position_; }
  uint64_t remaining() const { return size_ - position_; }
  uint64_t size() const { return size_; }
  const uint8_t* data() const { return data_; }
  const std::string& path() const { return path_; }
  Budget& budget() const { return budget_; }

  // `field` names what the bytes are: "value", "name length".
  const uint8_t* take(uint64_t n_bytes, const char* field) {
    if (n_bytes > remaining()) fail_truncated(n_bytes, field);
    if (n_bytes > budget_.header_bytes) fail_header(field);
    budget_.header_bytes -= n_bytes;
    const uint8_t* bytes = data_ + position_;
    position_ += n_bytes;
    return bytes;
  }
  template <typename T>
  T read(const char* field) {
    T value;
    std::memcpy(&value, take(sizeof(T), field), sizeof(T));
    return value;
  }

  [[noreturn]] void fail_truncated(uint64_t n_bytes, const char* field) const;
  // "<path>: <where> (at byte <offset>): <message>"
  [[noreturn]] void fail_at(const char* code, uint64_t offset, const std::string& message) const;

 private:
  [[noreturn]] void fail_header(const char* field) const;

  const uint8_t* data_;
  uint64_t size_;
  const std::string& path_;
  Budget& budget_;
  uint64_t position_ = 0;
  const char* noun_ = "header";
  uint64_t index_ = 0, count_ = 0;
  std::string_view name_;
};

// The end of a message about a file that no writer would have written.
constexpr const char* kDamaged = "the file is damaged: download or convert it again";

}  // namespace kimi::gguf
