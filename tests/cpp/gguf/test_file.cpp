// The C++ side of the reader: views, lookups and the entry from memory. What it refuses is tested from Python.
#include <cstring>

#include "expect_error.h"
#include "gguf/gguf.h"
#include "gguf/limits.h"
#include "gguf/types.h"
#include "temp_file.h"

using namespace kimi;
using gguf::File;
using gguf::ValueType;

namespace {

template <typename T>
std::string raw(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}
std::string text(const std::string& s) { return raw<uint64_t>(s.size()) + s; }

template <typename T>
std::string key(const std::string& name, ValueType type, T value) {
  return text(name) + raw(static_cast<uint32_t>(type)) + raw(value);
}
std::string key(const std::string& name, const std::string& value) { return text(name) + raw(uint32_t{8}) + text(value); }
std::string array(const std::string& name, ValueType type, uint64_t count, const std::string& elements) {
  return text(name) + raw(uint32_t{9}) + raw(static_cast<uint32_t>(type)) + raw(count) + elements;
}
std::string tensor(const std::string& name, uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset) {
  return text(name) + raw(uint32_t{2}) + raw(ne0) + raw(ne1) + raw(type) + raw(offset);
}

std::string sample() {
  const std::string keys = key("general.architecture", "test") + key("a.u32", ValueType::u32, uint32_t{7}) +
                           key("a.negative", ValueType::i8, int8_t{-7}) + key("a.large", ValueType::u64, UINT64_MAX) +
                           key("a.f32", ValueType::f32, 0.5f) + key("a.f64", ValueType::f64, 0.1) +
                           key("a.flag", ValueType::boolean, uint8_t{1}) +
                           array("a.names", ValueType::string, 3, text("x") + text("") + text("zz")) +
                           array("a.ints", ValueType::i16, 2, raw(int16_t{-1}) + raw(int16_t{2})) +
                           array("a.floats", ValueType::f32, 2, raw(1.5f) + raw(-2.0f)) + array("a.none", ValueType::f64, 0, "");
  const std::string tensors = tensor("second", 8, 2, 0, 32) + tensor("first", 8, 1, 0, 0) + tensor("odd", 128, 1, 40, 96);
  std::string bytes = "GGUF" + raw(uint32_t{3}) + raw(uint64_t{3}) + raw(uint64_t{11}) + keys + tensors;
  bytes.resize((bytes.size() + 31) / 32 * 32);
  for (int i = 0; i < 24; ++i) bytes += raw(static_cast<float>(i));
  return bytes + std::string(96, '\0');  // 72 bytes of NVFP4, padded
}

File parse(const std::string& bytes) {
  return File::from_memory(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), "memory");
}

}  // namespace

TEST_CASE("tensors are found by name, in file order, with views into the bytes") {
  const std::string bytes = sample();
  const File file = parse(bytes);
  REQUIRE(file.tensors().size() == 3);
  CHECK(file.tensors()[0].name == "second");
  const gguf::TensorInfo* second = file.find_tensor("second");
  REQUIRE(second != nullptr);
  CHECK(second == &file.tensors()[0]);
  CHECK(second->n_dims == 2);
  CHECK(second->ne[1] == 2);
  CHECK(second->ne[3] == 1);
  CHECK(second->n_elems() == 16);
  CHECK(second->n_bytes == 64);
  CHECK(second->data == reinterpret_cast<const uint8_t*>(bytes.data()) + second->file_offset);
  float value;
  std::memcpy(&value, second->data, sizeof value);
  CHECK(value == 8.0f);
  CHECK(file.find_tensor("third") == nullptr);
  CHECK(file.find_tensor("") == nullptr);
  CHECK(file.find_tensor("secon") == nullptr);
  CHECK(file.warnings().empty());
}

TEST_CASE("a tensor of a type that is not read has a size but no data") {
  const std::string bytes = sample();
  const File file = parse(bytes);
  const gguf::TensorInfo* odd = file.find_tensor("odd");
  REQUIRE(odd != nullptr);
  CHECK(odd->format == nullptr);
  CHECK(odd->data == nullptr);
  CHECK(odd->n_bytes == 72);
}

TEST_CASE("values are read by type") {
  const std::string bytes = sample();
  const File file = parse(bytes);
  CHECK(file.get_string("general.architecture") == "test");
  CHECK(file.get_uint("a.u32") == 7);
  CHECK(file.get_int("a.u32") == 7);
  CHECK(file.get_int("a.negative") == -7);
  CHECK(file.get_uint("a.large") == UINT64_MAX);
  CHECK(file.get_float("a.f32") == 0.5);
  CHECK(file.get_float("a.f64") == 0.1);
  CHECK(file.get_bool("a.flag") == true);
  CHECK(*file.get_strings("a.names") == std::vector<std::string_view>{"x", "", "zz"});
  CHECK(*file.get_ints("a.ints") == std::vector<int64_t>{-1, 2});
  CHECK(*file.get_floats("a.floats") == std::vector<double>{1.5, -2.0});
  CHECK(file.get_floats("a.none")->empty());
  CHECK(file.metadata().size() == 11);
  CHECK(file.metadata()[1].first == "a.u32");
}

TEST_CASE("an absent key is nothing, of whatever type") {
  const std::string bytes = sample();
  const File file = parse(bytes);
  CHECK(file.find_key("no") == nullptr);
  CHECK_FALSE(file.get_uint("no"));
  CHECK_FALSE(file.get_int("no"));
  CHECK_FALSE(file.get_float("no"));
  CHECK_FALSE(file.get_bool("no"));
  CHECK_FALSE(file.get_string("no"));
  CHECK_FALSE(file.get_strings("no"));
  CHECK_FALSE(file.get_ints("no"));
  CHECK_FALSE(file.get_floats("no"));
}

TEST_CASE("a key of another type or range is an error that names it") {
  const std::string bytes = sample();
  const File file = parse(bytes);
  const auto kind = ErrorKind::bad_model_file;
  const std::string message = expect_error(kind, "gguf.key_type", [&] { (void)file.get_uint("general.architecture"); });
  CHECK(message.find("memory: key 'general.architecture' (at byte 56): is string, expected an integer") == 0);
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_int("a.f32"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_float("a.u32"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_bool("a.u32"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_string("a.names"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_strings("a.ints"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_strings("general.architecture"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_ints("a.floats"); });
  expect_error(kind, "gguf.key_type", [&] { (void)file.get_floats("a.ints"); });
  expect_error(kind, "gguf.key_value", [&] { (void)file.get_uint("a.negative"); });
  expect_error(kind, "gguf.key_value", [&] { (void)file.get_int("a.large"); });
}

TEST_CASE("every prefix of a file is refused, from memory that ends there") {
  const std::string bytes = sample();
  for (size_t size = 0; size < bytes.size(); ++size) {
    const std::vector<uint8_t> exact(bytes.begin(),
                                     bytes.begin() + static_cast<std::ptrdiff_t>(size));  // a sanitizer sees the end
    try {
      File::from_memory(exact.data(), exact.size(), "memory");
      FAIL_CHECK(size << " of " << bytes.size() << " bytes were accepted");
    } catch (const Error& error) {
      if (error.code() != "gguf.truncated") FAIL_CHECK(size << " bytes: " << error.what());
    }
  }
}

TEST_CASE("a file can be moved and outlives the path it came from") {
  const TempFolder folder;
  const std::string path = folder.write("a.gguf", sample());
  File file = File::open(path);
  std::filesystem::remove(path);
  File moved = std::move(file);
  file = std::move(moved);
  CHECK(file.path() == path);
  CHECK(file.file_bytes() == sample().size());
  CHECK(file.n_shards() == 1);
  CHECK(file.version() == 3);
  CHECK(file.get_string("general.architecture") == "test");
  CHECK(file.find_tensor("first")->data != nullptr);
}

TEST_CASE("sizes of the types that are read agree with the formats") {
  int readable = 0, unreadable = 0, removed = 0;
  for (uint32_t id = 0; id < 500; ++id) {
    switch (gguf::type_status(id)) {
      case gguf::TypeStatus::readable: {
        const quant::Format* format = quant::find_format(id);
        REQUIRE(format != nullptr);
        CHECK(gguf::block_size(id).elems == static_cast<uint32_t>(format->block_elems));
        CHECK(gguf::block_size(id).bytes == static_cast<uint32_t>(format->block_bytes));
        ++readable;
        break;
      }
      case gguf::TypeStatus::unreadable:
        CHECK(gguf::block_size(id).bytes > 0);
        ++unreadable;
        break;
      case gguf::TypeStatus::removed:
        ++removed;
        break;
      case gguf::TypeStatus::foreign:
        CHECK(id > 96);
        break;
      case gguf::TypeStatus::undefined:
        CHECK(id >= 42);
        break;
    }
  }
  CHECK(readable == static_cast<int>(quant::formats().size()));
  CHECK(unreadable == 42 - readable - removed);
  CHECK(removed == 8);
}
