#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <utility>
#include <vector>

#include "base/mapped_file.h"
#include "expect_error.h"
#include "temp_file.h"

using kimi::ErrorKind;
using kimi::expect_error;
using kimi::MappedFile;
using kimi::TempFolder;

namespace {

std::string text_of(const MappedFile& file) { return {reinterpret_cast<const char*>(file.data()), file.size()}; }

struct ChildResult {
  int status;
  std::string output;  // stderr
};

// Runs `body` in a child; its exit status is 0 when it returns.
template <typename Body>
ChildResult in_child(const Body& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    close(ends[0]);
    close(ends[1]);
    body();
    _exit(0);
  }
  close(ends[1]);
  ChildResult result = {};
  char buffer[1024];
  for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) result.output.append(buffer, static_cast<size_t>(n));
  close(ends[0]);
  REQUIRE(waitpid(child, &result.status, 0) == child);
  return result;
}

volatile uint8_t sink;

void read_all(const MappedFile& file) {
  for (uint64_t i = 0; i < file.size(); i += 512) sink = file.data()[i];
}

}  // namespace

TEST_CASE("a mapped file has the bytes of the file") {
  const TempFolder folder;
  const std::string path = folder.write("a", "hello");
  const MappedFile file = MappedFile::open(path);
  CHECK(text_of(file) == "hello");
  CHECK(file.path() == path);
}

TEST_CASE("a mapping can be moved, and self-move and swap lose nothing") {
  const TempFolder folder;
  MappedFile a = MappedFile::open(folder.write("a", "aaa"));
  MappedFile b = MappedFile::open(folder.write("b", "bb"));
  const uint8_t* data = a.data();
  MappedFile c = std::move(a);
  CHECK(c.data() == data);
  CHECK(a.data() == nullptr);
  CHECK(a.size() == 0);
  b = std::move(c);
  CHECK(text_of(b) == "aaa");
  std::vector<MappedFile> many;
  for (int i = 0; i < 100; ++i) many.push_back(MappedFile::open(folder.write(std::to_string(i), std::to_string(i))));
  for (int i = 0; i < 100; ++i) CHECK(text_of(many[static_cast<size_t>(i)]) == std::to_string(i));
}

TEST_CASE("what is not a regular file is refused without waiting") {
  const TempFolder folder;
  const auto refuses = [](const std::string& path, const char* code) {
    const std::string message = expect_error(ErrorKind::bad_model_file, code, [&] { MappedFile::open(path); });
    CHECK(message.find(std::string(path.c_str()).substr(0, 60)) != std::string::npos);
  };
  refuses(folder.path("nothing"), "file.not_found");
  refuses("", "file.not_found");
  refuses(std::string("a\0b", 3), "file.not_found");
  refuses(folder.path(""), "file.directory");
  refuses(folder.write("empty", ""), "file.empty");
  refuses(folder.write("file", "x") + "/below", "file.not_found");
  refuses("/dev/zero", "file.not_regular");
  refuses("/dev/null", "file.not_regular");
  refuses(std::string(5000, 'x'), "file.name_too_long");
  REQUIRE(mkfifo(folder.path("fifo").c_str(), 0600) == 0);
  refuses(folder.path("fifo"), "file.not_regular");
  REQUIRE(symlink(folder.path("loop").c_str(), folder.path("loop").c_str()) == 0);
  refuses(folder.path("loop"), "file.symlink_loop");
}

TEST_CASE("a file that shrinks while it is mapped ends the process with a message") {
  const TempFolder folder;
  const std::string path = folder.write("cut.gguf", std::string(100000, 'x'));
  const ChildResult result = in_child([&] {
    const MappedFile other = MappedFile::open(folder.write("other", "x"));
    const MappedFile file = MappedFile::open(path);
    if (truncate(path.c_str(), 0) != 0) _exit(1);
    read_all(file);
  });
  CHECK(WIFEXITED(result.status));
  CHECK(WEXITSTATUS(result.status) == 70);
  CHECK(result.output.find("kimi_vl_cpp: " + path + ": the file became shorter while it was in use") == 0);
  CHECK(result.output.find("at byte 0)") != std::string::npos);
  CHECK(result.output.find('\n') == result.output.size() - 1);
}
