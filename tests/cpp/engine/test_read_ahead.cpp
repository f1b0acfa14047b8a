#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "engine/read_ahead.h"
#include "temp_file.h"

using kimi::MappedFile;
using kimi::ReadAhead;
using kimi::TempFolder;

namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

// Where the file system can forget a file, this one begins outside the page cache.
MappedFile cold_file(const TempFolder& folder, uint64_t size) {
  const std::string path = folder.write("weights", std::string(size, 'w'));
  const int fd = ::open(path.c_str(), O_RDONLY);
  REQUIRE(fd >= 0);
  ::fsync(fd);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
  return MappedFile::open(path);
}

bool all_cached(const MappedFile& file) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> resident((file.size() + page - 1) / page);
  REQUIRE(::mincore(const_cast<uint8_t*>(file.data()), file.size(), resident.data()) == 0);
  return std::all_of(resident.begin(), resident.end(), [](unsigned char r) { return r & 1; });
}

}  // namespace

TEST_CASE("ranges of any size and alignment are brought into memory") {
  const TempFolder folder;
  const MappedFile file = cold_file(folder, 24 * kMiB + 5);
  const ReadAhead reader({{file.data(), 1},
                          {file.data() + 1, 9 * kMiB},
                          {file.data() + 9 * kMiB + 1, 0},
                          {file.data() + 9 * kMiB + 1, 15 * kMiB + 4}});
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!all_cached(file) && std::chrono::steady_clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  CHECK(all_cached(file));
  CHECK(std::all_of(file.data(), file.data() + file.size(), [](uint8_t byte) { return byte == 'w'; }));
}

TEST_CASE("a reader may be dropped at once, and may have nothing to do") {
  const TempFolder folder;
  const MappedFile file = cold_file(folder, 24 * kMiB);
  for (int i = 0; i < 20; ++i) const ReadAhead reader({{file.data(), file.size()}});
  const ReadAhead none({});
  const ReadAhead more_than_any_memory({{file.data(), UINT64_MAX / 2}});
}
