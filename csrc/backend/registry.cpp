#include "backend/registry.h"

#include <algorithm>

#include "base/error.h"

namespace kimi {
namespace {

struct Row {
  const char* name;
  std::unique_ptr<Backend> (*make)(const BackendOptions&);
};
constexpr Row kRows[] = {{"cpu", make_cpu}, {"cuda", make_cuda}};

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::vector<std::string> backend_names() {
  std::vector<std::string> names;
  for (const Row& row : kRows) names.emplace_back(row.name);
  return names;
}

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  for (const Row& row : kRows)
    if (name == row.name) return row.make(options);
  fail(ErrorKind::bad_request, "device.unknown", "unknown backend \"%s\", expected one of %s", name.c_str(),
       listed(backend_names()).c_str());
}

void check_options(const std::string& name, const BackendOptions& options, const std::vector<std::string>& known) {
  for (const auto& [option, value] : options)
    KIMI_CHECK(std::find(known.begin(), known.end(), option) != known.end(), ErrorKind::bad_request, "device.option",
               "the backend %s has no option \"%s\", expected one of %s", name.c_str(), option.c_str(), listed(known).c_str());
}

}  // namespace kimi
