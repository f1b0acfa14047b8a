// A read-only mapping of a whole file. Owns the mapping; knows nothing of what the bytes mean.
#pragma once
#include <cstdint>
#include <string>

namespace kimi {

class MappedFile {
 public:
  // Regular files only. Throws Error(bad_model_file, "file.*"): not found, a directory, a device, not readable, empty.
  static MappedFile open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  const uint8_t* data() const noexcept { return data_; }
  uint64_t size() const noexcept { return size_; }
  const std::string& path() const noexcept { return path_; }

 private:
  MappedFile() = default;
  const uint8_t* data_ = nullptr;
  uint64_t size_ = 0;
  std::string path_;
};

}  // namespace kimi
