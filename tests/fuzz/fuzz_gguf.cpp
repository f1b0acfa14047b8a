// libFuzzer target: any bytes are either refused with a typed error or read, with every value and tensor touched.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"
#include "gguf/types.h"

namespace {

using kimi::gguf::File;

volatile uint64_t sink;

// Never assert(): it is compiled out.
void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "fuzz_gguf: %s\n", what);
  std::abort();
}

// Errors of typed access are of the file; anything else is a finding.
template <typename Body>
void may_refuse(const Body& body) {
  try {
    body();
  } catch (const kimi::Error& error) {
    require(error.kind() == kimi::ErrorKind::bad_model_file, error.what());
    require(!error.code().empty() && std::strncmp(error.what(), "input", 5) == 0, "an error that does not name the file");
  }
}

void touch(const void* bytes, uint64_t size) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < size; ++i) sum += static_cast<const uint8_t*>(bytes)[i];
  sink = sum;
}

void touch_metadata(const File& file) {
  for (const auto& entry : file.metadata()) {
    const std::string& key = entry.first;
    const kimi::gguf::Value& value = entry.second;
    require(file.find_key(key) == &value, "a key that is not found");
    touch(value.data, value.size);
    may_refuse([&] { sink = *file.get_uint(key); });
    may_refuse([&] { sink = static_cast<uint64_t>(*file.get_int(key)); });
    may_refuse([&] { sink = *file.get_float(key) > 0; });
    may_refuse([&] { sink = *file.get_bool(key); });
    may_refuse([&] {
      const auto text = file.get_string(key);
      touch(text->data(), text->size());
    });
    may_refuse([&] { sink = file.get_ints(key)->size(); });
    may_refuse([&] { sink = file.get_floats(key)->size(); });
    may_refuse([&] {
      const auto texts = file.get_strings(key);
      for (const std::string_view text : *texts) touch(text.data(), text.size());
    });
  }
  require(!file.find_key(std::string_view("\0", 1)), "a key that no file can have");
}

void touch_tensors(const File& file, uint64_t size) {
  std::vector<float> out;
  for (const kimi::gguf::TensorInfo& tensor : file.tensors()) {
    require(file.find_tensor(tensor.name) == &tensor, "a tensor that is not found");
    require(tensor.n_elems() > 0 && tensor.n_bytes > 0, "an empty tensor");
    require(tensor.file_offset <= size && tensor.n_bytes <= size - tensor.file_offset, "a tensor beyond the file");
    sink = kimi::gguf::block_size(tensor.type_id).bytes;
    if (!tensor.format) {
      require(tensor.data == nullptr, "data of a type that is not read");
      continue;
    }
    touch(tensor.data, tensor.n_bytes);
    const auto n = std::min<int64_t>(static_cast<int64_t>(tensor.n_elems()), 4 * tensor.format->block_elems);
    out.resize(static_cast<size_t>(n));
    tensor.format->decode(tensor.data, out.data(), n);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  may_refuse([&] {
    const File file = File::from_memory(data, size, "input");
    touch_metadata(file);
    touch_tensors(file, size);
    for (const std::string& warning : file.warnings())
      require(warning.rfind("input", 0) == 0, "a warning that does not name the file");
  });
  return 0;
}
