// All shards of a model as one: opening, joining, looking up.
#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "gguf/gguf.h"
#include "gguf/split.h"
#include "gguf/text.h"
#include "gguf/values.h"

namespace kimi::gguf {

using ull = unsigned long long;
constexpr ErrorKind kBad = ErrorKind::bad_model_file;

struct File::Impl {
  std::string path;
  std::vector<MappedFile> mappings;  // of all shards; empty for a file in memory
  std::vector<std::string> paths;    // of all shards
  uint64_t file_bytes = 0;
  Shard first;  // metadata of the model; its tensors have moved to `tensors`
  std::vector<TensorInfo> tensors;
  std::vector<uint32_t> tensors_by_name;  // sorted
  std::vector<std::string> warnings;

  Lookup lookup() const { return {first.metadata, first.keys_by_name, paths[0]}; }

  // Moves what a shard holds into the whole.
  void add(Shard& shard, const std::string& shard_path, uint64_t size) {
    for (TensorInfo& tensor : shard.tensors) tensor.shard = static_cast<int>(paths.size());
    std::move(shard.tensors.begin(), shard.tensors.end(), std::back_inserter(tensors));
    std::move(shard.warnings.begin(), shard.warnings.end(), std::back_inserter(warnings));
    shard.tensors.clear();
    paths.push_back(shard_path);
    file_bytes += size;
  }

  // Sorted rather than hashed: a file cannot choose names that make it slow.
  void index_tensors() {
    tensors_by_name.resize(tensors.size());
    std::iota(tensors_by_name.begin(), tensors_by_name.end(), 0u);
    std::sort(tensors_by_name.begin(), tensors_by_name.end(), [&](uint32_t a, uint32_t b) {
      const int order = tensors[a].name.compare(tensors[b].name);
      return order != 0 ? order < 0 : a < b;
    });
    for (size_t i = 1; i < tensors.size(); ++i) {
      const TensorInfo& a = tensors[tensors_by_name[i - 1]];
      const TensorInfo& b = tensors[tensors_by_name[i]];
      KIMI_CHECK(a.name != b.name, kBad, "gguf.duplicate_tensor",
                 "%s: tensor %s: appears twice, with its data at byte %llu of %s and at byte %llu; the file is damaged: download "
                 "or convert it again",
                 paths[b.shard].c_str(), quoted(b.name).c_str(), static_cast<ull>(a.file_offset),
                 a.shard == b.shard ? "this file" : paths[a.shard].c_str(), static_cast<ull>(b.file_offset));
    }
  }
};

namespace {

MappedFile open_part(const std::string& path, const std::string& named, const Split& split, uint64_t number) {
  try {
    return MappedFile::open(path);
  } catch (const Error& error) {
    if (error.code() != "file.not_found") throw;
    fail(kBad, "gguf.split_missing", "%s: no such file: %s is part %llu of %llu and needs all of them: download part %llu too",
         path.c_str(), named.c_str(), static_cast<ull>(split.number + 1), static_cast<ull>(split.count),
         static_cast<ull>(number + 1));
  }
}

void check_part(const Split& part, const std::string& path, const Split& named, const std::string& named_path, uint64_t number) {
  KIMI_CHECK(part.number == number, kBad, "gguf.split_mismatch",
             "%s: key 'split.no': is %llu, expected %llu by the file's name; give the parts back the names under which they were "
             "published",
             path.c_str(), static_cast<ull>(part.number), static_cast<ull>(number));
  KIMI_CHECK(part.count == named.count, kBad, "gguf.split_mismatch",
             "%s: key 'split.count': is %llu, but %llu in %s; the parts are not of the same model: download them again together",
             path.c_str(), static_cast<ull>(part.count), static_cast<ull>(named.count), named_path.c_str());
  KIMI_CHECK(
      part.n_tensors == named.n_tensors, kBad, "gguf.split_mismatch",
      "%s: key 'split.tensors.count': is %llu, but %llu in %s; the parts are not of the same model: download them again together",
      path.c_str(), static_cast<ull>(part.n_tensors), static_cast<ull>(named.n_tensors), named_path.c_str());
}

}  // namespace

File File::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  Budget budget;
  MappedFile named_file = MappedFile::open(path);
  Shard named = parse_shard(named_file.data(), named_file.size(), path, budget);
  const Split split = read_split(named, path);
  if (split.count > 1) (void)part_path(path, split, 0);  // refuses a name that does not fit before other files are tried
  for (uint64_t number = 0; number < split.count; ++number) {
    const bool is_named = number == split.number;
    const std::string shard_path = is_named ? path : part_path(path, split, number);
    MappedFile file = is_named ? std::move(named_file) : open_part(shard_path, path, split, number);
    Shard shard = is_named ? std::move(named) : parse_shard(file.data(), file.size(), shard_path, budget);
    if (!is_named) check_part(read_split(shard, shard_path), shard_path, split, path, number);
    impl->add(shard, shard_path, file.size());
    impl->mappings.push_back(std::move(file));
    if (number == 0) {
      impl->first = std::move(shard);
    } else {
      check_same_model(impl->first, impl->paths[0], shard, shard_path);
    }
  }
  KIMI_CHECK(split.count == 1 || impl->tensors.size() == split.n_tensors, kBad, "gguf.split_mismatch",
             "%s: the %llu parts hold %zu tensors, but key 'split.tensors.count' is %llu; download the parts again together",
             path.c_str(), static_cast<ull>(split.count), impl->tensors.size(), static_cast<ull>(split.n_tensors));
  impl->index_tensors();
  return File(std::move(impl));
}

File File::from_memory(const uint8_t* data, uint64_t size, const std::string& name) {
  auto impl = std::make_unique<Impl>();
  impl->path = name;
  Budget budget;
  Shard shard = parse_shard(data, size, name, budget);
  impl->add(shard, name, size);
  impl->first = std::move(shard);
  impl->index_tensors();
  return File(std::move(impl));
}

File::File(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
File::File(File&&) noexcept = default;
File& File::operator=(File&&) noexcept = default;
File::~File() = default;

const std::string& File::path() const { return impl_->path; }
uint32_t File::version() const { return impl_->first.version; }
int File::n_shards() const { return static_cast<int>(impl_->paths.size()); }
uint64_t File::file_bytes() const { return impl_->file_bytes; }
const std::vector<std::string>& File::warnings() const { return impl_->warnings; }
const std::vector<std::pair<std::string, Value>>& File::metadata() const { return impl_->first.metadata; }
const std::vector<TensorInfo>& File::tensors() const { return impl_->tensors; }

const Value* File::find_key(std::string_view key) const {
  return gguf::find_key(impl_->first.metadata, impl_->first.keys_by_name, key);
}

const TensorInfo* File::find_tensor(std::string_view name) const {
  const std::vector<TensorInfo>& tensors = impl_->tensors;
  const auto& order = impl_->tensors_by_name;
  const auto it = std::lower_bound(order.begin(), order.end(), name,
                                   [&](uint32_t i, std::string_view n) { return std::string_view(tensors[i].name) < n; });
  return it != order.end() && tensors[*it].name == name ? &tensors[*it] : nullptr;
}

std::optional<uint64_t> File::get_uint(std::string_view key) const { return impl_->lookup().get_uint(key); }
std::optional<int64_t> File::get_int(std::string_view key) const { return impl_->lookup().get_int(key); }
std::optional<double> File::get_float(std::string_view key) const { return impl_->lookup().get_float(key); }
std::optional<bool> File::get_bool(std::string_view key) const { return impl_->lookup().get_bool(key); }
std::optional<std::string_view> File::get_string(std::string_view key) const { return impl_->lookup().get_string(key); }
std::optional<std::vector<std::string_view>> File::get_strings(std::string_view key) const {
  return impl_->lookup().get_strings(key);
}
std::optional<std::vector<int64_t>> File::get_ints(std::string_view key) const { return impl_->lookup().get_ints(key); }
std::optional<std::vector<double>> File::get_floats(std::string_view key) const { return impl_->lookup().get_floats(key); }

}  // namespace kimi::gguf
