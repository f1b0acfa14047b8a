#include "gguf/cursor.h"

#include "base/error.h"
#include "gguf/text.h"

namespace kimi::gguf {

using ull = unsigned long long;

std::string Cursor::where() const {
  if (!name_.empty()) return std::string(noun_) + " " + quoted(name_);
  if (count_) return format_string("%s %llu of %llu", noun_, static_cast<ull>(index_ + 1), static_cast<ull>(count_));
  return noun_;
}

void Cursor::fail_at(const char* code, uint64_t offset, const std::string& message) const {
  fail(ErrorKind::bad_model_file, code, "%s: %s (at byte %llu): %s", path_.c_str(), where().c_str(), static_cast<ull>(offset),
       message.c_str());
}

void Cursor::fail_truncated(uint64_t n_bytes, const char* field) const {
  fail_at(
      "gguf.truncated", position_,
      format_string("the %s needs %llu bytes, but only %llu of the file's %llu bytes are left; the file is cut short or damaged: "
                    "download or convert it again",
                    field, static_cast<ull>(n_bytes), static_cast<ull>(remaining()), static_cast<ull>(size_)));
}

void Cursor::fail_header(const char* field) const {
  fail_at("gguf.header_size", position_,
          format_string("with the %s, metadata and tensor directory take more than the %llu MiB that are allowed; %s", field,
                        static_cast<ull>(limits::kHeaderBytes >> 20), kDamaged));
}

}  // namespace kimi::gguf
