// The one exception type of the core. Owns the list of error kinds; knows nothing of Python or exit codes.
#pragma once
#include <cstdarg>
#include <stdexcept>
#include <string>

namespace kimi {

enum class ErrorKind {
  bad_model_file,  // a file that is not what it claims to be
  bad_image,       // pixels or sizes that cannot be encoded
  bad_request,     // an argument of the caller
  context_full,    // more tokens than the session has room for
  out_of_memory,   // an allocation that failed or would not fit
  cancelled,       // the caller asked to stop
  unsupported,     // valid, but not implemented
  internal,        // our own bug
};

class Error : public std::runtime_error {
 public:
  // code: stable, dotted, lower case ("gguf.truncated"); message: what, where, and what to do.
  Error(ErrorKind kind, std::string code, const std::string& message)
      : std::runtime_error(message), kind_(kind), code_(std::move(code)) {}
  ErrorKind kind() const noexcept { return kind_; }
  const std::string& code() const noexcept { return code_; }

 private:
  ErrorKind kind_;
  std::string code_;
};

[[noreturn]] void fail(ErrorKind kind, const char* code, const char* format, ...) __attribute__((format(printf, 3, 4)));
std::string format_string(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace kimi

// KIMI_CHECK(n > 0, ErrorKind::bad_request, "request.n", "n is %d, expected a positive number", n);
#define KIMI_CHECK(condition, ...)               \
  do {                                           \
    if (!(condition)) ::kimi::fail(__VA_ARGS__); \
  } while (0)

// For our own bugs only: never for what a file or a caller can cause.
#define KIMI_DCHECK(condition)                                                                                                  \
  do {                                                                                                                          \
    if (!(condition)) ::kimi::fail(::kimi::ErrorKind::internal, "internal.check", "%s:%d: %s", __FILE__, __LINE__, #condition); \
  } while (0)
