#include "gguf/split.h"

#include "base/error.h"
#include "gguf/text.h"
#include "gguf/values.h"

namespace kimi::gguf {
namespace {

using ull = unsigned long long;
constexpr ErrorKind kBad = ErrorKind::bad_model_file;

std::string part_suffix(uint64_t number, uint64_t count) {
  return format_string("-%05llu-of-%05llu.gguf", static_cast<ull>(number + 1), static_cast<ull>(count));
}

ull offset_of(const Shard& shard, std::string_view key) {
  const Value* value = find_key(shard.metadata, shard.keys_by_name, key);
  return value ? value->file_offset : 0;
}

}  // namespace

Split read_split(const Shard& shard, const std::string& path) {
  const Lookup lookup{shard.metadata, shard.keys_by_name, path};
  Split split;
  const auto count = lookup.get_uint("split.count");
  if (!count) return split;
  split.count = *count;
  KIMI_CHECK(split.count >= 1 && split.count <= limits::kShards, kBad, "gguf.split_count",
             "%s: key 'split.count' (at byte %llu): is %llu, allowed are 1 to %llu; %s", path.c_str(),
             offset_of(shard, "split.count"), static_cast<ull>(split.count), static_cast<ull>(limits::kShards), kDamaged);
  if (split.count == 1) return split;
  const auto number = lookup.get_uint("split.no"), n_tensors = lookup.get_uint("split.tensors.count");
  KIMI_CHECK(number && n_tensors, kBad, "gguf.split_keys",
             "%s: key '%s': is missing in a file of %llu parts (split.count at byte %llu); download or split it again",
             path.c_str(), number ? "split.tensors.count" : "split.no", static_cast<ull>(split.count),
             offset_of(shard, "split.count"));
  KIMI_CHECK(*number < split.count, kBad, "gguf.split_count",
             "%s: key 'split.no' (at byte %llu): is %llu, expected less than split.count, %llu; %s", path.c_str(),
             offset_of(shard, "split.no"), static_cast<ull>(*number), static_cast<ull>(split.count), kDamaged);
  split.number = *number;
  split.n_tensors = *n_tensors;
  return split;
}

std::string part_path(const std::string& path, const Split& split, uint64_t number) {
  const std::string own = part_suffix(split.number, split.count);
  KIMI_CHECK(path.size() > own.size() && path.ends_with(own), kBad, "gguf.split_name",
             "%s: is part %llu of %llu by its keys split.no and split.count, so its name must end in '%s'; give the parts back "
             "the names "
             "under which they were published",
             path.c_str(), static_cast<ull>(split.number + 1), static_cast<ull>(split.count), own.c_str());
  return path.substr(0, path.size() - own.size()) + part_suffix(number, split.count);
}

void check_same_model(const Shard& first, const std::string& first_path, const Shard& part, const std::string& part_path) {
  for (const auto& [key, value] : part.metadata) {
    if (key == "split.no" || key == "general.alignment") continue;
    const Value* other = find_key(first.metadata, first.keys_by_name, key);
    if (!other) continue;
    const bool same = other->type == value.type && other->element_type == value.element_type && other->size == value.size &&
                      std::memcmp(other->data, value.data, value.size) == 0;
    KIMI_CHECK(same, kBad, "gguf.split_mismatch",
               "%s: key %s (at byte %llu): differs from the one in %s; the parts are not of the same model: download them again "
               "together",
               part_path.c_str(), quoted(key).c_str(), static_cast<ull>(value.file_offset), first_path.c_str());
  }
}

}  // namespace kimi::gguf
