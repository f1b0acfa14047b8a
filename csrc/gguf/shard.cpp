// The fixed part of the header, and the order in which the rest is read.
#include "gguf/shard.h"

#include "base/error.h"
#include "gguf/text.h"

namespace kimi::gguf {
namespace {

using ull = unsigned long long;

// What people try instead of a GGUF file, by its first bytes.
const char* looks_like(std::string_view bytes) {
  const auto starts = [&](std::string_view prefix) { return bytes.substr(0, prefix.size()) == prefix; };
  if (starts("FUGG")) return "a big-endian GGUF: convert it for little-endian machines";
  if (starts("lmgg") || starts("tjgg") || starts("fmgg") || starts("algg"))
    return "a GGML file from before GGUF: convert the model again";
  if (starts("\x1f\x8b") || starts("BZh") ||
      starts("\xfd"
             "7zXZ") ||
      starts("\x28\xb5\x2f\xfd") || starts("7z\xbc\xaf") || starts("Rar!"))
    return "a compressed file: unpack it and use the GGUF file inside";
  if (bytes.size() > 262 && bytes.substr(257, 5) == "ustar") return "a tar archive: unpack it and use the GGUF file inside";
  if (starts("version https://git-lfs")) return "a Git LFS pointer, not the file itself: run 'git lfs pull'";
  if (bytes.size() > 9 && bytes[8] == '{' && bytes.substr(4, 4) == std::string_view("\0\0\0", 4))
    return "a safetensors file: convert it to GGUF";
  if (const size_t text = bytes.find_first_not_of(" \t\r\n\xef\xbb\xbf"); text != std::string_view::npos) {
    if (bytes[text] == '<') return "a web page: the download went wrong, fetch the file itself";
    if (bytes[text] == '{' || bytes[text] == '[')
      return "JSON text, such as a server's error message or a model's configuration: download the GGUF file itself";
  }
  if (starts("PK\x03\x04"))
    return "a zip archive or a PyTorch file: unpack it if a GGUF file is inside, or convert the model to GGUF";
  if (starts("\x80\x02") || starts("\x80\x03") || starts("\x80\x04") || starts("\x80\x05"))
    return "a pickle, such as a PyTorch file: convert the model to GGUF";
  if (starts("\x89HDF")) return "an HDF5 file: convert the model to GGUF";
  if (starts("\x08") && bytes.find("\x12") < 4) return "an ONNX file: get the model as GGUF, or convert its original";
  return "not a GGUF file, or a damaged one: download or convert it again";
}

void check_magic(Cursor& cursor) {
  const std::string_view all(reinterpret_cast<const char*>(cursor.data()), cursor.size());
  if (all.size() < 4 && std::string_view("GGUF").substr(0, all.size()) == all) cursor.fail_truncated(4, "magic");
  if (all.substr(0, 4) != "GGUF") {
    cursor.fail_at("gguf.magic", 0,
                   "starts with " + quoted(all.substr(0, 4)) + ", expected 'GGUF': " + looks_like(all.substr(0, 512)));
  }
  cursor.take(4, "magic");
}

uint32_t read_version(Cursor& cursor) {
  const uint32_t version = cursor.read<uint32_t>("version");
  if (version != 0 && (version & 0xffff) == 0) {
    cursor.fail_at("gguf.endianness", 4,
                   format_string("the version is 0x%08x: a big-endian file; convert it for little-endian machines", version));
  }
  if (version != 2 && version != 3) {
    cursor.fail_at(
        "gguf.version", 4,
        format_string("the version is %u, supported are 2 and 3: %s", version,
                      version == 1 ? "convert the model again with current tools"
                      : version == 0
                          ? kDamaged
                          : "the file is damaged or newer than this reader: download it again, or update kimi_vl_cpp"));
  }
  return version;
}

// A count that the rest of the file cannot hold is refused before anything is reserved for it.
uint64_t read_count(Cursor& cursor, const char* field, uint64_t limit) {
  const uint64_t offset = cursor.position(), count = cursor.read<uint64_t>(field);
  if (count > limit) {
    cursor.fail_at(
        "gguf.count", offset,
        format_string("the %s is %llu, allowed are %llu; %s", field, static_cast<ull>(count), static_cast<ull>(limit), kDamaged));
  }
  return count;
}

uint64_t read_alignment(Cursor& cursor, const Shard& shard) {
  const Value* value = find_key(shard.metadata, shard.keys_by_name, "general.alignment");
  if (!value) return limits::kDefaultAlignment;
  cursor.enter("key");
  cursor.set_name("general.alignment");
  if (value->type != ValueType::u32) {
    cursor.fail_at("gguf.alignment", value->file_offset,
                   format_string("is of type %s, expected u32; %s", value_type_name(value->type), kDamaged));
  }
  uint32_t alignment;
  std::memcpy(&alignment, value->data, sizeof alignment);
  if (alignment < limits::kMinAlignment || alignment > limits::kMaxAlignment || (alignment & (alignment - 1)) != 0) {
    cursor.fail_at("gguf.alignment", value->file_offset,
                   format_string("is %u, expected a power of two from %llu to %llu; %s", alignment,
                                 static_cast<ull>(limits::kMinAlignment), static_cast<ull>(limits::kMaxAlignment), kDamaged));
  }
  return alignment;
}

}  // namespace

Shard parse_shard(const uint8_t* bytes, uint64_t size, const std::string& path, Budget& budget) {
  Cursor cursor(bytes, size, path, budget);
  Shard shard;
  check_magic(cursor);
  shard.version = read_version(cursor);
  const uint64_t n_tensors = read_count(cursor, "number of tensors", budget.tensors);
  const uint64_t n_keys = read_count(cursor, "number of keys", limits::kKeys);
  budget.tensors -= n_tensors;
  const uint64_t least = n_keys * limits::kMinKeyEntryBytes + n_tensors * limits::kMinTensorEntryBytes;
  if (least > cursor.remaining()) cursor.fail_truncated(least, "list of keys and tensors");
  read_metadata(cursor, n_keys, shard);
  const uint64_t alignment = read_alignment(cursor, shard);
  read_tensors(cursor, n_tensors, alignment, shard);
  return shard;
}

}  // namespace kimi::gguf
