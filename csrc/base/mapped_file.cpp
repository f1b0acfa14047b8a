// Opening and mapping a file that someone else may own, and what happens when it shrinks while it is mapped: reading a page
// that is gone raises SIGBUS, which would be a silent core dump. A handler says which file it was and leaves with status 70.
#include "base/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/error.h"

namespace kimi {
namespace {

// ---- the mappings that the signal handler knows -----------------------------------------------------------------------

// Nodes are never freed, only reused: the handler walks the list without a lock.
struct Mapping {
  std::atomic<uintptr_t> begin{0};  // 0: free
  std::atomic<uintptr_t> end{0};
  char path[256];  // the end of it, when it is longer
  Mapping* next = nullptr;
};
std::atomic<Mapping*> g_mappings{nullptr};
std::mutex g_mutex;  // of writers
struct sigaction g_previous;

void append(char* text, size_t capacity, size_t* length, const char* piece) {
  while (*piece && *length < capacity) text[(*length)++] = *piece++;
}

void append_number(char* text, size_t capacity, size_t* length, uint64_t number) {
  char digits[21];
  size_t n = sizeof digits;
  digits[--n] = '\0';
  do digits[--n] = static_cast<char>('0' + number % 10);
  while (number /= 10);
  append(text, capacity, length, digits + n);
}

// Only calls that are safe in a signal handler.
[[noreturn]] void report_and_exit(const Mapping& mapping, uintptr_t address) {
  char text[640];
  size_t length = 0;
  const auto add = [&](const char* piece) { append(text, sizeof text - 1, &length, piece); };
  add("kimi_vl_cpp: ");
  add(mapping.path);
  add(": the file became shorter while it was in use, or its disk failed (no data at byte ");
  append_number(text, sizeof text - 1, &length, address - mapping.begin.load(std::memory_order_relaxed));
  add("): replace model files by renaming a new file over the old one, restore this one and start again");
  text[length++] = '\n';
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text, length);
  ::_exit(70);
}

void on_sigbus(int signal_number, siginfo_t* info, void* context) {
  if (info->si_code > 0) {  // a fault, not a signal that someone sent
    const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
    for (const Mapping* m = g_mappings.load(std::memory_order_acquire); m; m = m->next) {
      const uintptr_t begin = m->begin.load(std::memory_order_acquire);
      if (begin && address >= begin && address < m->end.load(std::memory_order_relaxed)) report_and_exit(*m, address);
    }
  }
  // Not ours: what would have happened without us.
  if (g_previous.sa_flags & SA_SIGINFO) return g_previous.sa_sigaction(signal_number, info, context);
  if (g_previous.sa_handler != SIG_DFL && g_previous.sa_handler != SIG_IGN) return g_previous.sa_handler(signal_number);
  ::sigaction(signal_number, &g_previous, nullptr);  // a fault happens again on return;
  if (info->si_code <= 0) ::raise(signal_number);    // a sent signal has to be sent again
}

void register_mapping(const uint8_t* data, uint64_t size, const std::string& path) {
  const std::lock_guard<std::mutex> lock(g_mutex);
  static const bool installed = [] {
    struct sigaction action = {};
    action.sa_sigaction = on_sigbus;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&action.sa_mask);
    // The handler may run between the two: know the old one first.
    ::sigaction(SIGBUS, nullptr, &g_previous);
    return ::sigaction(SIGBUS, &action, nullptr) == 0;
  }();
  (void)installed;
  Mapping* mapping = g_mappings.load(std::memory_order_relaxed);
  while (mapping && mapping->begin.load(std::memory_order_relaxed)) mapping = mapping->next;
  const bool fresh = !mapping;
  if (fresh) mapping = new Mapping;
  const size_t kept = std::min(path.size(), sizeof mapping->path - 1);
  std::memcpy(mapping->path, path.data() + path.size() - kept, kept);
  mapping->path[kept] = '\0';
  mapping->end.store(reinterpret_cast<uintptr_t>(data) + size, std::memory_order_relaxed);
  mapping->begin.store(reinterpret_cast<uintptr_t>(data), std::memory_order_release);
  if (fresh) {
    mapping->next = g_mappings.load(std::memory_order_relaxed);
    g_mappings.store(mapping, std::memory_order_release);
  }
}

void forget_mapping(const uint8_t* data) noexcept {
  const std::lock_guard<std::mutex> lock(g_mutex);
  for (Mapping* m = g_mappings.load(std::memory_order_relaxed); m; m = m->next) {
    if (m->begin.load(std::memory_order_relaxed) == reinterpret_cast<uintptr_t>(data)) {
      m->begin.store(0, std::memory_order_release);
      return;
    }
  }
}

// ---- opening ----------------------------------------------------------------------------------------------------------

struct Descriptor {
  int fd;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

constexpr ErrorKind kBad = ErrorKind::bad_model_file;

[[noreturn]] void fail_open(const std::string& path, int error) {
  const char* p = path.c_str();
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      fail(kBad, "file.not_found", "%s: no such file: check the path", p);
    case EACCES:
    case EPERM:
      fail(kBad, "file.not_readable", "%s: permission denied: make the file and its folders readable for this user", p);
    case ELOOP:
      fail(kBad, "file.symlink_loop", "%s: symbolic links that lead in a circle: name the file itself", p);
    case ENAMETOOLONG:
      fail(kBad, "file.name_too_long", "%.64s…: a path of %zu bytes is too long for this system", p, path.size());
    case ENXIO:
    case ENODEV:
      fail(kBad, "file.not_regular", "%s: a device or socket, expected a regular file: copy the model to a file first", p);
    case EMFILE:
    case ENFILE:
      fail(kBad, "file.too_many_open", "%s: too many open files: close some or raise the limit (ulimit -n)", p);
    default:
      fail(kBad, "file.open", "%s: cannot be opened: %s", p, std::strerror(error));
  }
}

void check_regular(const std::string& path, const struct stat& info) {
  const char* p = path.c_str();
  KIMI_CHECK(!S_ISDIR(info.st_mode), kBad, "file.directory", "%s: is a directory: name a file in it", p);
  const char* kind = S_ISFIFO(info.st_mode) ? "a named pipe" : S_ISSOCK(info.st_mode) ? "a socket" : "a device";
  KIMI_CHECK(S_ISREG(info.st_mode), kBad, "file.not_regular",
             "%s: is %s, expected a regular file: copy the model to a file first", p, kind);
  KIMI_CHECK(info.st_size > 0, kBad, "file.empty", "%s: the file is empty (0 bytes): download or write it again", p);
}

}  // namespace

MappedFile MappedFile::open(const std::string& path) {
  KIMI_CHECK(!path.empty(), kBad, "file.not_found", "the path is empty: name a file");
  KIMI_CHECK(path.find('\0') == std::string::npos, kBad, "file.not_found", "%s: the path contains a NUL byte", path.c_str());
  // O_NONBLOCK: a named pipe without a writer would block forever.
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
  if (file.fd < 0) fail_open(path, errno);
  struct stat info;
  KIMI_CHECK(::fstat(file.fd, &info) == 0, kBad, "file.open", "%s: cannot be examined: %s", path.c_str(), std::strerror(errno));
  check_regular(path, info);

  const auto size = static_cast<uint64_t>(info.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, file.fd, 0);
  if (data == MAP_FAILED) {
    KIMI_CHECK(errno != ENOMEM, ErrorKind::out_of_memory, "memory.address_space",
               "%s: no address space for %llu MiB: raise the limit (ulimit -v) or use a smaller file", path.c_str(),
               static_cast<unsigned long long>(size >> 20));
    fail(kBad, "file.map", "%s: cannot be mapped: %s: copy it to a local disk", path.c_str(), std::strerror(errno));
  }
#ifdef MADV_HUGEPAGE
  // Pages of 2 MiB where the file system has them: weights are read 3 to 5 % faster. A hint; what is cached stays as it is.
  ::madvise(data, size, MADV_HUGEPAGE);
#endif
  MappedFile mapped;
  mapped.data_ = static_cast<const uint8_t*>(data);
  mapped.size_ = size;
  mapped.path_ = path;
  register_mapping(mapped.data_, size, path);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)), path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!data_) return;
  forget_mapping(data_);
  ::munmap(const_cast<uint8_t*>(data_), size_);
}

}  // namespace kimi
